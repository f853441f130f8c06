"""HTTP/1.1 for answers that come in many small chunks: httpcore's connection, its answers read by httptools.

h11 takes some 10 us for each chunk of a stream and hands it on alone; httptools takes one, and all that one packet
brought is handed on together.
"""

import time
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from enum import Enum
from typing import Final, cast

import httpcore
import httptools

READ_BYTES: Final = 64 * 1024
HEAD_BYTES: Final = 100 * 1024
"""What may come without anything of an answer in it: a head, trailers, chunk extensions."""
BODILESS: Final = frozenset({204, 304})
_BREAKS: Final = (b"\r", b"\n", b"\0")

State = Enum("State", ["NEW", "ACTIVE", "IDLE", "CLOSED"])
Pairs = list[tuple[bytes, bytes]]


class _Parts:
    """The parts of one answer after the other, as httptools calls them out."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        # As lenient as h11 with what real servers write.
        self.parser.set_dangerous_leniencies(
            lenient_chunked_length=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self.begin()

    def begin(self) -> None:
        self.status = 0
        self.reason = b""
        self.headers: Pairs = []
        self.body: list[bytes] = []
        self.begun = self.complete = self.kept = self.surplus = self.until_close = False
        self.idle_bytes = 0
        self.fault: str | None = None

    def feed(self, data: bytes) -> None:
        """What is wrong with it counts after what came before the fault: an answer that has begun has begun."""
        self.idle_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.surplus = True
            self.fault = str(error) or type(error).__name__
        if self.idle_bytes > HEAD_BYTES:
            self.fault = f"{self.idle_bytes} bytes without an end of the head, or any of the body"

    def end(self) -> None:
        """The server has closed the connection."""
        self.surplus = True
        if not self.begun:
            self.fault = "Server disconnected without sending a response."
        elif self.until_close:
            self.complete = True
        else:
            self.fault = "peer closed connection without sending complete message body"

    def check(self) -> None:
        """Raises httpcore.RemoteProtocolError."""
        if self.fault is not None:
            raise httpcore.RemoteProtocolError(self.fault)

    @property
    def reusable(self) -> bool:
        return self.complete and self.kept and not self.surplus

    def on_message_begin(self) -> None:
        self.surplus = self.complete

    def on_status(self, reason: bytes) -> None:
        if not self.complete:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.begun:  # what comes after the body are trailers
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self.parser.get_status_code()
        if status < 200 and status != 101:
            self.reason, self.headers = b"", []  # the answer itself is still to come
            return
        self.status, self.begun, self.idle_bytes = status, True, 0
        framed = any(
            name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower())
            for name, value in ((name.lower(), value) for name, value in self.headers)
        )
        self.until_close = not framed and status not in BODILESS

    def on_body(self, data: bytes) -> None:
        if not self.complete:
            self.idle_bytes = 0
            self.body.append(data)

    def on_message_complete(self) -> None:
        if self.begun and not self.complete:
            self.complete, self.kept = True, self.parser.should_keep_alive()


class Http1Connection(httpcore.AsyncConnectionInterface):
    """One call at a time; what is stopped within an answer closes the connection."""

    def __init__(
        self, origin: httpcore.Origin, stream: httpcore.AsyncNetworkStream, keepalive_expiry: float | None
    ) -> None:
        self._origin = origin
        self._stream = stream
        self._keepalive_s = keepalive_expiry
        self._expires_s: float | None = None
        self._state = State.NEW
        self._written = False
        self._parts = _Parts()

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        if self._state not in (State.NEW, State.IDLE):
            raise httpcore.ConnectionNotAvailable
        self._state, self._expires_s, self._written = State.ACTIVE, None, False
        parts = self._parts
        parts.begin()
        try:
            await self._send(request)
            while not parts.begun:
                await self._more()
                if not parts.begun:
                    parts.check()
        except BaseException:
            await self.aclose()
            raise
        return httpcore.Response(
            parts.status, headers=parts.headers, content=_Body(self),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": parts.reason, "network_stream": self._stream},
        )  # fmt: skip

    async def _send(self, request: httpcore.Request) -> None:
        body = cast("AsyncIterable[bytes]", request.stream)
        whole = [_head(request), *[part async for part in body]]
        # A server may refuse a call before it has all of it: then there is an answer to read.
        with suppress(httpcore.WriteError):
            await self._stream.write(b"".join(whole))
            self._written = True

    async def _more(self) -> None:
        """Raises httpcore.ReadError."""
        if data := await self._stream.read(READ_BYTES):
            self._parts.feed(data)
        else:
            self._parts.end()

    async def body(self) -> AsyncIterator[bytes]:
        """All that has come each time, as soon as it has; a fault after what came before it."""
        parts = self._parts
        while True:
            if parts.body:
                data, parts.body = b"".join(parts.body), []
                yield data
            if parts.complete:
                return
            parts.check()
            await self._more()

    async def ended(self) -> None:
        """The call is over, whether its answer is or not."""
        if self._state is State.ACTIVE and self._written and self._parts.reusable:
            self._state = State.IDLE
            if self._keepalive_s is not None:
                self._expires_s = time.monotonic() + self._keepalive_s
        else:
            await self.aclose()

    async def aclose(self) -> None:
        self._state = State.CLOSED
        await self._stream.aclose()

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        return origin == self._origin

    def is_available(self) -> bool:
        return self._state is State.IDLE

    def is_idle(self) -> bool:
        return self._state is State.IDLE

    def is_closed(self) -> bool:
        return self._state is State.CLOSED

    def has_expired(self) -> bool:
        """What a server says between two calls is that it has left."""
        if self._state is not State.IDLE:
            return False
        late = self._expires_s is not None and time.monotonic() > self._expires_s
        return late or bool(self._stream.get_extra_info("is_readable"))

    def info(self) -> str:
        return f"{str(self._origin)!r}, HTTP/1.1, {self._state.name}"


class _Body:
    def __init__(self, connection: Http1Connection) -> None:
        self._connection = connection
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._connection.body():
                yield data
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._connection.ended()


def _head(request: httpcore.Request) -> bytes:
    """Raises httpcore.LocalProtocolError for what could begin another line."""
    pairs = [b"%b: %b\r\n" % pair for pair in request.headers]
    first = b"%b %b HTTP/1.1\r\n" % (request.method, request.url.target)
    if any(mark in text[:-2] for text in (first, *pairs) for mark in _BREAKS):
        raise httpcore.LocalProtocolError("a line break in a header")
    return b"".join((first, *pairs, b"\r\n"))
