"""A cable that can be cut: a TCP relay in front of a broker, in the test's own loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Cable:
    """While it is cut, what stands falls silent and what is new is refused; `pull` also resets what stands."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._whole = asyncio.Event()
        self._joined: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._whole.set()

    def cut(self) -> None:
        self._whole.clear()
        if self._server is not None:
            self._server.close()

    def pull(self) -> None:
        self.cut()
        for each in self._joined:
            each.cancel()

    async def end(self) -> None:
        for each in (joined := tuple(self._joined)):
            each.cancel()
        await asyncio.gather(*joined, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._join(reader, writer))
        self._joined.add(task)
        task.add_done_callback(self._joined.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._to)
            writers.append(there_writer)
            await asyncio.gather(self._carry(reader, there_writer), self._carry(there_reader, writer))
        finally:
            for each in writers:
                each.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def cable(url: str) -> AsyncIterator[tuple[Cable, str]]:
    """The cable to the nats-server at `url`, and the URL at its other end."""
    host, port = url.removeprefix("nats://").split(":")
    made = Cable(host, int(port))
    await made.mend()
    try:
        yield made, f"nats://127.0.0.1:{made.port}"
    finally:
        made.cut()
        await made.end()
