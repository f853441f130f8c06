"""The line to one caller: what goes out on it, whether anybody listens, and that it lives while nothing is said."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from starlette.types import Message, Receive, Send

from adapters.edge import facts
from router.errors import LlmbusError, stop

SEND_S: Final = 60.0
"""A caller that takes nothing for so long is gone."""
STREAM_HEADERS: Final[facts.Pairs] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class CallerGoneError(LlmbusError):
    """Nobody listens any more."""


class Line:
    """One HTTP exchange as ASGI gives it. Pings may come between the parts of its response."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._turn = asyncio.Lock()
        self._limit: asyncio.Timeout | None = None
        self.gone = False
        """The caller has hung up."""
        self._ended = False
        self._said_s = asyncio.get_running_loop().time()
        self.begun = False

    @asynccontextmanager
    async def listened_to(self) -> AsyncIterator[None]:
        """Raises CallerGoneError within the block as soon as the caller has hung up."""
        try:
            async with asyncio.timeout(None) as self._limit:
                watching = asyncio.create_task(self._watch())
                try:
                    yield
                finally:
                    await stop(watching)
                    self._limit = None
        except TimeoutError:
            if self.gone:
                raise CallerGoneError("the caller hung up") from None
            raise

    @asynccontextmanager
    async def pinging(self, ping: bytes, every_s: float, pairs: facts.Pairs) -> AsyncIterator[None]:
        """While nothing goes out, say that it lives, and begin the stream with `pairs` for that."""
        pings = asyncio.create_task(self._ping(ping, every_s, pairs))
        try:
            yield
        finally:
            await stop(pings)

    async def begin(self, pairs: facts.Pairs) -> None:
        """The head of a stream, unless it has begun."""
        async with self._turn:
            if not self.begun:
                await self.send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *pairs]})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        async with self._turn:
            if not self._ended:  # as it may have, while a ping waited for its turn
                await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def send(self, message: Message) -> None:
        """As ASGI has it. Raises CallerGoneError."""
        if self.gone:  # which what was awaited may have swallowed
            raise CallerGoneError("the caller hung up")
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(message)
        except (TimeoutError, OSError):
            self._hung_up()
            raise CallerGoneError("the caller takes nothing any more") from None
        # Said only now: what was cancelled while it waited for its turn never went out.
        self.begun = True
        self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        self._said_s = asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._hung_up()

    def _hung_up(self) -> None:
        """The end of a response is told like a hang-up, and is none."""
        if self._ended or self.gone:
            return
        self.gone = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def _ping(self, ping: bytes, every_s: float, pairs: facts.Pairs) -> None:
        with suppress(CallerGoneError):  # the block hears of it
            while not self._ended:
                quiet_s = asyncio.get_running_loop().time() - self._said_s
                if quiet_s < every_s:
                    await asyncio.sleep(every_s - quiet_s)
                    continue
                await self.begin(pairs)
                await self.write(ping)
