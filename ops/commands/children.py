"""Child processes that are kept running while we live, end when we say so, and never outlive us.

Each child holds the reading end of a pipe whose writing end only we hold: however we end, the child notices.
"""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0
WELL_S = 30.0
"""A child that ran this long has recovered: its next pause is the first one again."""

LAST_BYTES, LAST_CHARS = 4096, 240

Say = Callable[[str, str, bool], None]
"""Told of what happens to a part: its name, the words, and whether it is good."""


class Child:
    """One `llmbus` role in a process of its own, its log in a file."""

    def __init__(self, name: str, command: tuple[str, ...], logs: Path) -> None:
        self.name = name
        self.log_path = logs / f"{name}.log"
        # -P: what lies about in the working directory is not to be imported.
        self._command = (sys.executable, "-P", "-m", "ops.cli", *command, "--supervised")
        self._url: str | None = None
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    @asynccontextmanager
    async def started(cls, name: str, command: tuple[str, ...], logs: Path) -> AsyncIterator[Self]:
        """The process, already getting ready; leaving kills it if it was not stopped."""
        child = cls(name, command, logs)
        await child._start()
        try:
            yield child
        finally:
            await child._kill()

    async def tell(self, url: str) -> None:
        """Let it go to work on the bus at `url`."""
        self._url = url
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.write(f"{url}\n".encode())
            with suppress(ConnectionError):  # it died: whoever keeps it starts another
                await process.stdin.drain()

    async def keep(self, say: Say) -> None:
        """Start it again whenever it ends, later each time; for ever."""
        pause_s = FIRST_PAUSE_S
        while (process := self._process) is not None:
            begun = time.monotonic()
            code = await process.wait()
            if time.monotonic() - begun > WELL_S:
                pause_s = FIRST_PAUSE_S
            last = last_line(self.log_path)
            say(self.name, f"ended {how_it_ended(code)}, starts again in {pause_s:g} s; it said: {last}", False)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            await self._start()
            if self._url is not None:
                await self.tell(self._url)
            say(self.name, "runs again", True)

    async def stop(self) -> None:
        """Let it finish what it has in hand."""
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.wait()

    async def _start(self) -> None:
        with self.log_path.open("ab") as log:
            # Its own session: Ctrl-C reaches us, and we stop it in its turn.
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    async def _kill(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def early_router(store: Path) -> AsyncIterator[Child]:
    """Enter it before anything that takes time: a router gets ready meanwhile."""
    async with Child.started("router", ("router",), _logs(store)) as router:
        yield router


@asynccontextmanager
async def guarded(pid: int) -> AsyncIterator[None]:
    """A process that reads no pipe is ended as well when we are gone: a shell waits for that in our place."""
    guard = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", f"read _; kill -TERM {pid}", stdin=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        guard.kill()
        await guard.wait()


def _logs(store: Path) -> Path:
    logs = store / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs


def how_it_ended(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"


def last_line(log: Path) -> str:
    """What a process said last."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "nothing")[:LAST_CHARS]
