"""An OpenAI-compatible upstream in a process of its own, and the handle that tells it what to do.

    /stream-<tokens>-<gap_ms>   streams so many tokens, the first with the head, the others spaced, or all at once
    /silent                     takes the request and says nothing
    /primary                    on a port of its own: as told, `ok`, `500`, or `refuse` (nobody listens there)

It shares neither event loop nor CPU with what is measured. Times are CLOCK_MONOTONIC, the same in every process.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, cast

import uvloop

from tests.support.openai_speech import DONE, FINISH, USAGE, event

Mode = Literal["ok", "500", "refuse"]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN = b'{"error": {"message": "it fell over", "type": "server_error"}}'
FAILED = b"HTTP/1.1 500 Oh\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BROKEN), BROKEN)
UNKNOWN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
TOKENS_OF_PRIMARY = 8


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


TOKEN = _chunk(event({"content": "토큰 "}))
END = _chunk(FINISH + event(usage=USAGE) + DONE) + b"0\r\n\r\n"


class Server:
    """What all connections share."""

    def __init__(self) -> None:
        self.mode: Mode = "ok"
        self.calls: Counter[str] = Counter()
        self.failed_at: float | None = None
        self.primary: asyncio.Server | None = None
        self.at_primary: set[asyncio.Transport] = set()

    async def listen(self, port: int = 0) -> int:
        server = await asyncio.get_running_loop().create_server(lambda: Connection(self), "127.0.0.1", port)
        self.primary = server
        return int(server.sockets[0].getsockname()[1])

    async def become(self, mode: Mode, port: int) -> None:
        self.mode = mode
        if mode != "refuse" and self.primary is None:
            await self.listen(port)
        if mode == "refuse" and self.primary is not None:
            self.primary.close()
            for transport in tuple(self.at_primary):
                transport.abort()
            self.primary = None


class Connection(asyncio.Protocol):
    """One request at a time, kept alive."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._read = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        now = time.monotonic()
        self._server.at_primary.discard(self._transport)
        if self._timer is not None:
            self._timer.cancel()
        if self._busy:
            tell("gone", now)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, blank, body = self._read.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if not blank or len(body) < length:
            return
        self._read.clear()
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            self._transport.write(UNKNOWN)
        else:
            self._asked(path.split(b"/")[1].decode())

    def _asked(self, name: str) -> None:
        server = self._server
        server.calls[name] += 1
        if server.failed_at is not None:
            tell("gap", time.monotonic() - server.failed_at)
            server.failed_at = None
        if name == "silent":
            return
        if name != "primary":
            tokens, gap_ms = name.split("-")[1:]
            self._stream(int(tokens), int(gap_ms) / 1000)
            return
        server.at_primary.add(self._transport)
        if server.mode == "ok":
            self._stream(TOKENS_OF_PRIMARY, 0)
        else:
            self._transport.write(FAILED)
            server.failed_at = time.monotonic()

    def _stream(self, tokens: int, gap_s: float) -> None:
        if not gap_s:
            self._transport.write(HEAD + TOKEN * tokens + END)
            return
        self._busy = True
        self._transport.write(HEAD + TOKEN)
        self._next(tokens - 1, gap_s)

    def _next(self, left: int, gap_s: float) -> None:
        if left:
            self._timer = asyncio.get_running_loop().call_later(gap_s, self._piece, left, gap_s)
        else:
            self._busy = False
            self._transport.write(END)

    def _piece(self, left: int, gap_s: float) -> None:
        self._transport.write(TOKEN)
        self._next(left - 1, gap_s)


def tell(what: str, value: object) -> None:
    print(what, json.dumps(value), flush=True)


async def serve() -> None:
    """Follow what stdin says, a line each, until it ends."""
    server = Server()
    loop = asyncio.get_running_loop()
    steady = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
    port = await server.listen()
    tell("done", [steady.sockets[0].getsockname()[1], port])
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        if line != "calls":
            await server.become(cast("Mode", line), port)
        tell("done", server.calls)


@dataclass(slots=True)
class Upstream:
    """The process, seen from the benchmark."""

    process: asyncio.subprocess.Process
    done: asyncio.Queue[object] = field(default_factory=asyncio.Queue)
    gone: asyncio.Queue[float] = field(default_factory=asyncio.Queue)
    """When the client of an unfinished stream closed the connection."""
    gaps_s: list[float] = field(default_factory=list)
    """From a 500 written to the next request read, wherever it came."""
    url: str = ""
    primary_url: str = ""

    async def calls(self, name: str) -> int:
        """How many chats a path was asked for."""
        return cast("dict[str, int]", await self._say("calls")).get(name, 0)

    async def primary(self, mode: Mode) -> None:
        await self._say(mode)

    async def _say(self, line: str) -> object:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        return await self.done.get()

    async def _hear(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            what, _, value = line.decode().partition(" ")
            if what == "done":
                self.done.put_nowait(json.loads(value))
            elif what == "gone":
                self.gone.put_nowait(json.loads(value))
            else:
                self.gaps_s.append(json.loads(value))


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, stdin=pipe, stdout=pipe)
    started = Upstream(process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(started._hear())
        steady, primary = cast("list[int]", await started.done.get())
        started.url, started.primary_url = f"http://127.0.0.1:{steady}", f"http://127.0.0.1:{primary}"
        try:
            yield started
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


if __name__ == "__main__":
    uvloop.run(serve())
