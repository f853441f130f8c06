"""HTTP as the edge takes it: bounded before anything is asked of it, and refused in typed answers.

uvicorn's own protocol bounds neither what a head may hold nor how long it may take, and waits for ever for a caller
that does not read. Here a connection holds `HEAD_BYTES` of a head, some 64 KiB of a body that nobody reads, and one
message beyond the transport's own buffer; and none is there longer than it has a use.
"""

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn, cast

import httptools
from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from adapters.edge.app import shape_of
from adapters.edge.exchange import request_id
from adapters.edge.responses import refused
from schemas.failure import Error, ErrorType

HEAD_BYTES: Final = 32_768
HEADERS: Final = 100
URL_BYTES: Final = 8_192
PIPELINED: Final = 16
"""Requests that may wait behind the one that is being answered."""
HEAD_S = 10.0
"""What the head of a request may take to arrive; a new connection that says nothing has as long."""
LINGER_S = 5.0
"""What a caller has to take the next bit of an answer's end, or to end a body that is wanted no more."""
CONNECTIONS: Final = 1_000

_TOO_LONG: Final = (431, f"the head of a request has at most {HEAD_BYTES} bytes")


class ExcessError(Exception):
    """Raised through the parser, to stop it."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `limit_concurrency` of the settings is how many there may be."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # Not left to uvicorn, which would close nobody and answer in plain text.
        self._most, self.limit_concurrency = self.limit_concurrency or CONNECTIONS, None
        self._in_head = True
        self._whole = True
        """Of the request that is being answered nothing is still to come."""
        self._answered: RequestResponseCycle | None = None
        self._held_bytes = 0
        """What came since a callback has taken something over."""
        self._trailers = 0
        self._refusal = (400, "this is no HTTP/1.1 request")
        self._refused = False
        self._timer: TimerHandle | None = None
        self.idle_since_s = self.loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._due(HEAD_S, self._late)
        if len(self.connections) > self._most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._nothing_due()
        if self._answered is not None:  # uvicorn tells only the last of those that came at once
            self._answered.disconnected = True
            self._answered.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._held_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offered:
            self._go_on(data[offered.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(*self._refusal)
            return
        if self._held_bytes > HEAD_BYTES:
            self._refuse(*_TOO_LONG)
        elif self._held_bytes and self._in_head and self._timer is None:
            self._due(HEAD_S, self._late)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._trailers = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > URL_BYTES:
            self._stop(414, f"the address of a request has at most {URL_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)
        else:
            self._trailers += 1  # what trails a body is none of its headers
        if max(len(self.headers), self._trailers) > HEADERS:
            self._stop(431, f"a request has at most {HEADERS} headers")

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._stop(*_TOO_LONG)
        if len(self.pipeline) >= PIPELINED:
            self._stop(429, f"at most {PIPELINED} requests may wait on a connection")
        if self.parser.get_method() == b"CONNECT":
            self._stop(405, "this is no proxy")
        if self.parser.should_upgrade():
            return
        super().on_headers_complete()
        self._in_head = self._whole = False
        self._held_bytes = 0
        self._nothing_due()

    def on_body(self, body: bytes) -> None:
        self._held_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_head = self._whole = True
        self._held_bytes = 0
        if not self._busy():  # it was answered before it was there, and nobody waits for the next one
            self._due(HEAD_S, self._late)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.idle_since_s = self.loop.time()
        if not self._whole and not self._busy():
            self._due(LINGER_S, self.transport.abort)
        self._see_it_closed()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._see_it_closed()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: self._see_it_closed())

    @property
    def asks_nothing(self) -> bool:
        """Or has not got as far as the end of what it asks."""
        return not (self._busy() and self._whole)

    def _go_on(self, rest: bytes) -> None:
        """Another protocol was offered, as Java's client does with every request: declined by going on in this one.

        The parser would pass over the body; without the offer it does not.
        """
        kept = [(name, value) for name, value in self.headers if name not in (b"connection", b"upgrade")]
        lines = [name + b": " + value + b"\r\n" for name, value in kept]
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n", *lines, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self._held_bytes = 0
        self.data_received(b"".join(head) + rest)

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop(self, status: int, words: str) -> NoReturn:
        self._refusal = (status, words)
        raise ExcessError

    def _due(self, seconds: float, then: Callable[[], None]) -> None:
        self._nothing_due()
        self._timer = self.loop.call_later(seconds, then)

    def _nothing_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._busy():
            self._due(HEAD_S, self._late)
        elif self._held_bytes:
            self._refuse(408, f"the head of a request may take {HEAD_S:g} s")
        else:
            self.transport.close()

    def _make_room(self) -> None:
        """Whoever has asked for nothing yet goes, and of those who was first; without one the newcomer goes."""
        others = [each for each in self.connections if isinstance(each, BoundedProtocol) and each is not self]
        if idle := [each for each in others if each.asks_nothing]:
            min(idle, key=lambda each: each.idle_since_s).transport.abort()
        else:
            self._refuse(503, f"all {self._most} connections of the edge are in use")

    def _refuse(self, status: int, words: str) -> None:
        """The last that is said on this connection; what the caller still says is passed over, or it might miss it."""
        self._refused = True
        self._due(LINGER_S, self.transport.abort)
        if self._busy() and (self.cycle.response_started or self._whole):
            self.transport.close()  # it would be taken for the answer to another request
            return
        kind = ErrorType.OVERLOADED if status == 503 else ErrorType.BAD_REQUEST
        headers = Headers(raw=self.headers or [])
        error = Error.of(kind, request_id(headers), words, retry_after_ms=1_000 if status == 503 else None)
        response = refused(error, shape_of(getattr(self, "url", b"").decode("latin-1")))
        pairs = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = [name + b": " + value + b"\r\n" for name, value in pairs]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", bytes(response.body)]))
        with suppress(OSError, RuntimeError):
            self.transport.write_eof()

    def _see_it_closed(self, left_bytes: int | None = None) -> None:
        """A closed transport waits until all is sent, for ever if need be; this one only while something goes out."""
        if not self.transport.is_closing():
            return
        unsent = self.transport.get_write_buffer_size()
        if unsent and (left_bytes is None or unsent < left_bytes):
            self.loop.call_later(LINGER_S, self._see_it_closed, unsent)
        elif unsent:
            self.transport.abort()
