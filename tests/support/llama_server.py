"""A real llama-server with a model of random weights: real streams, real counts, real slots to become idle."""

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest

from tests.support.bus import free_port

MODEL: Final = "tiny"
PATIENCE_S: Final = 30.0
NOT_HERE: Final = "there is no llama-server: set LLAMA_SERVER to one, or have llama.cpp's on the PATH"


@dataclass(slots=True)
class LlamaServer:
    """`llama-server` on a port of its own; it may be killed and started again there."""

    command: list[str]
    url: str
    log: Path
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*self.command, stdout=log, stderr=log)

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def end(self) -> None:
        """Ask it to, so that its children end with it."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()

    def spawned(self) -> list[str]:
        """In router mode, the models it has started processes for, in order."""
        return re.findall(r"spawning server instance with name=(\S+)", self.log.read_text(errors="replace"))

    def child(self, model: str) -> psutil.Process:
        """In router mode, the process of a model."""
        assert self.process is not None
        [child] = [one for one in psutil.Process(self.process.pid).children() if model in one.cmdline()]
        return child

    async def health(self, *wanted: int) -> None:
        """Wait until `/health` answers with one of these: 503 while it loads, 200 once it serves."""

        def seen(response: httpx.Response) -> bool:
            return response.status_code in wanted

        await self._until("/health", seen)

    async def idle(self) -> None:
        """Wait until no slot is at work."""
        await self.slots(lambda slots: not any(slot["is_processing"] for slot in slots))

    async def busy(self) -> None:
        await self.slots(lambda slots: any(slot["is_processing"] for slot in slots))

    def tokens_processed(self) -> int:
        """Of the last answer, its prompt too, when the slot was left."""
        return int(re.findall(r"stop processing: n_tokens = (\d+)", self.log.read_text(errors="replace"))[-1])

    async def slots(self, wanted: Callable[[list[dict[str, Any]]], bool]) -> None:
        await self._until("/slots", lambda response: wanted(response.json()))

    async def _until(self, path: str, wanted: Callable[[httpx.Response], bool]) -> None:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as http, asyncio.timeout(PATIENCE_S):
            while True:
                assert self.process is not None
                assert self.process.returncode is None, self.log.read_text(errors="replace")[-2000:]
                try:
                    if wanted(await http.get(path)):
                        return
                except httpx.TransportError:
                    pass  # not listening yet
                await asyncio.sleep(0.01)


def binary() -> str | None:
    """Where there is one."""
    return os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")


@asynccontextmanager
async def llama_server(model: Path, *more: str, context: int = 4096) -> AsyncIterator[LlamaServer]:
    """Started, and perhaps still loading. Skips the test where there is none."""
    async with _serving("-m", str(model), "--alias", MODEL, "-c", str(context), "--slots", *more) as server:
        yield server


@asynccontextmanager
async def llama_router(models: Path, *more: str, places: int = 1) -> AsyncIterator[LlamaServer]:
    """Without a model of its own: it loads those in the directory `models`, so many at a time."""
    directory = ("--models-dir", str(models), "--models-max", str(places))
    async with _serving(*directory, "-c", "1024", *more) as server:
        try:
            await server.health(200)
            yield server
        finally:
            await server.end()


@asynccontextmanager
async def _serving(*wanted: str) -> AsyncIterator[LlamaServer]:
    path = binary()
    if path is None:
        pytest.skip(NOT_HERE)
    port = free_port()
    command = [
        path, *wanted, "--host", "127.0.0.1", "--port", str(port), "-np", "1", "-t", "1", "--no-webui",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="llmbus-llama-") as directory:
        server = LlamaServer(command, f"http://127.0.0.1:{port}", Path(directory) / "log")
        await server.start()
        try:
            yield server
        finally:
            await server.kill()
