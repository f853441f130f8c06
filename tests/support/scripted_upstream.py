"""A raw HTTP server on 127.0.0.1 that does to its clients whatever a script says, byte by byte."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Literal, Self

Ending = Literal["fin", "rst"]
SSE = {"Content-Type": "text/event-stream"}
JSON = {"Content-Type": "application/json"}


class Exchange:
    """One request, and the means to answer it well or badly."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str,
        headers: Mapping[str, str], body: bytes,
    ) -> None:  # fmt: skip
        self._reader, self._writer = reader, writer
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.gone = asyncio.Event()
        """The client closed the connection; noticed while `client_gone` or `while_connected` watches."""

    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int = 200, headers: Mapping[str, str] = SSE) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        await self.send("\r\n".join(lines).encode())

    async def chunk(self, data: bytes) -> None:
        """A piece of a body in chunked transfer encoding; an empty one ends it."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def reply(self, status: int, body: bytes, headers: Mapping[str, str] = JSON) -> None:
        """A whole answer that leaves the connection usable."""
        await self.head(status, {**headers, "Content-Length": str(len(body))})
        await self.send(body)

    async def stream(self, body: bytes, *, piece: int = 1 << 16, headers: Mapping[str, str] = SSE) -> None:
        """A body in pieces of so many bytes, each sent for itself, well ended."""
        await self.head(200, {**headers, "Transfer-Encoding": "chunked"})
        for at in range(0, len(body), piece):
            await self.chunk(body[at : at + piece])
            await asyncio.sleep(0)
        await self.chunk(b"")

    async def end(self, how: Ending = "fin") -> None:
        """Close the connection, politely or not."""
        if how == "rst":
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._writer.transport.abort()
        self._writer.close()

    async def client_gone(self) -> None:
        """Wait, saying nothing, until the client closes the connection."""
        with suppress(OSError):
            while await self._reader.read(4096):
                pass
        self.gone.set()

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` unless the client leaves before it ends. The connection is of no use afterwards."""

        async def watch(task: asyncio.Task[None]) -> None:
            await self.client_gone()
            task.cancel()

        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(work)
                watcher = group.create_task(watch(task))
                task.add_done_callback(lambda _: watcher.cancel())
        except* OSError:
            pass  # it left while it was written to
        await self.end()


Script = Callable[[Exchange], Awaitable[None]]


class ScriptedUpstream:
    """Serves each request by `script`, which may be changed at any time."""

    def __init__(self, script: Script | None = None, *, listed: bytes | None = None, port: int = 0) -> None:
        self.script = script
        self.port = port
        self.listed = listed
        """What it answers to any GET, outside the script: the list of its models."""
        self.exchanges: list[Exchange] = []
        self.arrived = asyncio.Event()
        """A request was read since this was last cleared."""
        self.connections = 0
        self._open: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Nothing listens there any more."""
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    async def all_gone(self) -> None:
        """Wait until no connection is open any more."""
        await asyncio.gather(*self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            while not writer.is_closing() and (exchange := await _request(reader, writer)):
                if exchange.method == "GET" and self.listed is not None:
                    await exchange.reply(200, self.listed)
                    continue
                self.exchanges.append(exchange)
                self.arrived.set()
                assert self.script is not None
                await self.script(exchange)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over; there is nobody above to tell
        finally:
            self._open.discard(task)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
    first = (await reader.readline()).decode()
    if not first:
        return None
    method, path, _ = first.split(" ", 2)
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode().strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Exchange(reader, writer, method, path, headers, body)
