"""Replies as they come, and pieces of streams, by client and request id: one subscription per client, many waiting at
once.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from types import TracebackType
from typing import Self

from adapters.bus import JetStreamBus
from router.errors import UnavailableError
from router.ports import Headers, Letter
from schemas import headers as h
from subjects import Chunk, Reply, parse
from subjects.streams import REPLIES

MAX_CLIENTS = 256
LOOK_AGAIN_S = 5.0
"""A reply that came while the connection was away is in the stream: look there now and then."""

Heard = asyncio.Queue[Letter]
OnPiece = Callable[[str, bytes, Headers], None]
"""Called with subject, data and headers."""


class Mailbox:
    """An async context; leaving it ends the subscriptions."""

    def __init__(self, bus: JetStreamBus) -> None:
        self._bus = bus
        self._clients: OrderedDict[str, AsyncExitStack] = OrderedDict()
        self._expected: dict[tuple[str, str], set[Heard]] = {}
        self._speaking: set[str] = set()
        """Clients whose pieces are heard too."""
        self._streams: dict[tuple[str, str], list[OnPiece]] = {}
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stack in self._clients.values():
            await stack.aclose()

    async def open(self, client: str, *, pieces: bool = False) -> None:
        """Hear this client's replies from now on, and `pieces` too; await it before publishing the request."""
        if client in self._clients and (client in self._speaking or not pieces):
            self._clients.move_to_end(client)
            return
        async with self._opening:
            if client not in self._clients:
                stack = AsyncExitStack()
                await stack.enter_async_context(
                    self._bus.listen(str(Reply(client, "x")).removesuffix("x") + "*", self._heard)
                )
                self._clients[client] = stack
            if pieces and client not in self._speaking:
                every = str(Chunk(client, "x", 0)).removesuffix("x.0") + "*.*"
                await self._clients[client].enter_async_context(self._bus.listen(every, self._heard_piece))
                self._speaking.add(client)
            if len(self._clients) > MAX_CLIENTS:
                await self._forget_an_idle_one()

    @contextmanager
    def hearing(self, client: str, rid: str, on_piece: OnPiece) -> Iterator[None]:
        """What is heard of this stream from here on, of a client that is open for pieces."""
        hearers = self._streams.setdefault((client, rid), [])
        hearers.append(on_piece)
        try:
            yield
        finally:
            hearers.remove(on_piece)
            if not hearers:
                del self._streams[client, rid]

    @contextmanager
    def expecting(self, client: str, rid: str) -> Iterator[Heard]:
        """What is heard under this id from here on. Enter it before publishing the request."""
        heard: Heard = asyncio.Queue()
        key = (client, rid)
        self._expected.setdefault(key, set()).add(heard)
        try:
            yield heard
        finally:
            self._expected[key].discard(heard)
            if not self._expected[key]:
                del self._expected[key]

    async def wait(
        self,
        heard: Heard,
        client: str,
        rid: str,
        timeout_s: float,
        *,
        request_hash: str | None = None,
        seq: int | None = None,
    ) -> Letter | None:
        """The reply under this id, live or stored; None when there is none in time.

        With `request_hash` only the reply to that very request: should its id be another's, its own reply is the
        refusal that stands under its sequence.
        """  # fmt: skip
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(min(left_s, LOOK_AGAIN_S)):
                    letter = await heard.get()
            except TimeoutError:
                # The bus may be away: the next look may find it.
                with suppress(UnavailableError):
                    if stored := await self.stored(client, rid, request_hash=request_hash, seq=seq):
                        return stored
            else:
                if request_hash in (None, letter.headers.get(h.REQUEST_HASH)):
                    return letter
        return None

    async def stored(
        self, client: str, rid: str, *, request_hash: str | None = None, seq: int | None = None
    ) -> Letter | None:
        """The terminal reply, if there is one."""
        letter = await self._bus.last(REPLIES, str(Reply(client, rid)))
        if letter is None or request_hash in (None, letter.headers.get(h.REQUEST_HASH)):
            return letter
        return await self._bus.last(REPLIES, str(Reply(client, f"seq-{seq}"))) if seq is not None else None

    def _heard(self, subject: str, data: bytes, headers: Headers) -> None:
        address = parse(subject)
        if isinstance(address, Reply):
            for heard in self._expected.get((address.client, address.rid), ()):
                heard.put_nowait(Letter(subject, data, headers, 0, 0))

    def _heard_piece(self, subject: str, data: bytes, headers: Headers) -> None:
        client, rid = subject.split(".")[2:4]  # `open` asked for no others
        for on_piece in self._streams.get((client, rid), ()):
            on_piece(subject, data, headers)

    async def _forget_an_idle_one(self) -> None:
        busy = {client for client, _ in self._expected}
        *others, _newest = self._clients
        for client in others:
            if client not in busy:
                self._speaking.discard(client)
                await self._clients.pop(client).aclose()
                return
        raise UnavailableError("llm.res", f"{MAX_CLIENTS} clients wait already")
