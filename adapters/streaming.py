"""The pieces of a streamed answer, in order and each once: live, and from their stream where some were missed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Self

from pydantic import ValidationError

from adapters.bus import JetStreamBus
from router.errors import LlmbusError, UnavailableError
from router.ports import Headers, Letter
from schemas.chunk import Chunk
from schemas.reply import Reply
from subjects import Chunk as ChunkSubject
from subjects.streams import CHUNKS

LOOKS: Final = 5
LOOK_AGAIN_S: Final = 0.02
"""A piece that was heard is in the stream a moment later, and all before it: that moment is given so often."""


class AttemptIdError(LlmbusError):
    """What was given is no attempt id."""


class Stream:
    """What comes of a request: `Chunk`s, and last its `Reply`. Another `attempt_id` means that the answer starts over.

    Iterate it in `async with` to be sure that it is closed when it is left early, and not only when it is collected.
    """

    def __init__(self, items: AsyncGenerator[Chunk | Reply, None]) -> None:
        self._items = items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk | Reply:
        return await anext(self._items)

    async def aclose(self) -> None:
        await self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Pieces:
    """Puts pieces in order, each once, of the newest attempt only; the first that is wanted is `after` + 1."""

    def __init__(self, attempt_id: str | None = None, after: int = -1) -> None:
        self._attempt = (0, 0) if attempt_id is None else _order(attempt_id)
        self._next = after + 1
        self._held: dict[int, Chunk] = {}
        self._texts: dict[int, str] = {}

    def add(self, chunk: Chunk) -> None:
        attempt = _order(chunk.attempt_id)
        if attempt < self._attempt:
            return
        if attempt > self._attempt:
            self._attempt, self._next, self._held, self._texts = attempt, 0, {}, {}
        self._texts[chunk.n] = chunk.text
        if chunk.n >= self._next:
            self._held[chunk.n] = chunk

    def ready(self) -> Iterator[Chunk]:
        """The pieces whose turn it is."""
        while (chunk := self._held.pop(self._next, None)) is not None:
            self._next += 1
            yield chunk

    @property
    def missing_before(self) -> tuple[int, int, int] | None:
        """The place of the first piece that is there while an earlier one is not."""
        if not self._held or self._next in self._held:
            return None
        return (*self._attempt, min(self._held))

    def skip(self) -> None:
        """Go on without what is missing."""
        self._next = min(self._held)

    @property
    def text(self) -> str:
        """The answer as far as it is known, what is not wanted included."""
        return "".join(self._texts[n] for n in sorted(self._texts))


@asynccontextmanager
async def feed(
    bus: JetStreamBus, client: str, rid: str, *, attempt_id: str | None = None, after: int = -1
) -> AsyncIterator["Feed"]:
    """Hears the pieces of a request from here on. Raises AttemptIdError."""
    heard = Feed(bus, client, rid, Pieces(attempt_id, after))
    async with bus.listen(heard.subject, heard.hear):
        yield heard


class Feed:
    """The pieces of one request, as long as somebody calls `hear` with each that comes; `feed` sees to that."""

    def __init__(self, bus: JetStreamBus, client: str, rid: str, pieces: Pieces) -> None:
        self._bus = bus
        self.subject = str(ChunkSubject(client, rid, 0)).removesuffix("0") + "*"
        self._pieces = pieces
        self._heard: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._read_to = 0
        self._stored_to = (0, 0, 0)

    def hear(self, _subject: str, data: bytes, _headers: Headers) -> None:
        if chunk := _chunk(data):
            self._heard.put_nowait(chunk)

    async def until(
        self, reply: Coroutine[Any, Any, Letter], *, look_first: bool = False, silence_s: float | None = None
    ) -> AsyncGenerator[Chunk | Letter, None]:
        """Pieces until there is a reply, then that; with `look_first` also those from before.

        Raises what `reply` raises, and TimeoutError when nothing is heard for `silence_s`.
        """
        replied = asyncio.create_task(reply)
        replied.add_done_callback(lambda _: self._heard.put_nowait(None))
        try:
            if look_first:
                await self._look()
            while True:
                if self._pieces.missing_before:
                    await self._fill()
                for chunk in self._pieces.ready():
                    yield chunk
                heard = await self._next(silence_s)
                if heard is None:
                    break
                self._pieces.add(heard)
            async for chunk in self._rest(letter := replied.result()):
                yield chunk
            yield letter
        finally:
            replied.cancel()
            await asyncio.wait((replied,))
            if not replied.cancelled():
                replied.exception()  # whoever left early has no use for it

    async def _next(self, silence_s: float | None) -> Chunk | None:
        if silence_s is None:
            return await self._heard.get()
        async with asyncio.timeout(silence_s):
            return await self._heard.get()

    async def _rest(self, letter: Letter) -> AsyncIterator[Chunk]:
        """What was stored and not heard, as after a connection that was lost."""
        message = Reply.decode(letter.data).message
        if message is not None and (not message.content or message.content != self._pieces.text):
            await self._look()
        while True:
            for chunk in self._pieces.ready():
                yield chunk
            if not self._pieces.missing_before:
                return
            self._pieces.skip()

    async def _fill(self) -> None:
        """Find what is missing in the stream; without it, go on."""
        for _ in range(LOOKS):
            if not await self._look():
                break
            gap = self._pieces.missing_before
            if gap is None:
                return
            if self._stored_to >= gap:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        self._pieces.skip()

    async def _look(self) -> bool:
        """Take what was stored since the last look; False when the bus is away."""
        try:
            async for letter in self._bus.read(CHUNKS, self.subject, start_seq=self._read_to + 1):
                self._read_to = letter.seq
                if chunk := _chunk(letter.data):
                    self._stored_to = max(self._stored_to, (*_order(chunk.attempt_id), chunk.n))
                    self._pieces.add(chunk)
        except UnavailableError:
            return False
        return True


def _chunk(data: bytes) -> Chunk | None:
    """None for what no node would write: it must not end anybody's stream."""
    try:
        chunk = Chunk.decode(data)
        _order(chunk.attempt_id)
    except (ValidationError, AttemptIdError):
        return None
    return chunk


@lru_cache(1024)
def _order(attempt_id: str) -> tuple[int, int]:
    """`10.1` comes after `2.1`."""
    attempt, _, delivery = attempt_id.partition(".")
    if not all(part.isascii() and part.isdigit() and len(part) <= 9 for part in (attempt, delivery)):
        raise AttemptIdError(f"{attempt_id!r} is no attempt id; they look like 2.1")
    return int(attempt), int(delivery)
