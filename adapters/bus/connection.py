"""A connection to nats-server that survives the server, and says so when it cannot be had."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from adapters.bus.reading import Direct, Reading
from adapters.bus.wire import Wire
from router.errors import UnavailableError, stop
from router.ports import Headers

log = structlog.get_logger(__name__)

RECONNECT_WAIT_S = 0.1
PING_INTERVAL_S = 5
PENDING_BYTES = 64 << 20
DRAIN_TIMEOUT_S = 5
_VERSION = b"NATS/1.0"


class BusClient(Client):
    """nats-py's client with four differences in how it reads, and one in how it ends.

    Neither names and headers that are not UTF-8 or not whole, which the server takes, nor its answer to a flush that
    nobody waits for any more, nor an error that it tells ends the reading of everything. And what comes on a direct
    subscription is handed over at once, without a queue and a task of its own in between. Once closed it does not go on
    looking for a server.
    """

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, Direct] = {}
        self.wire = Wire(self)

    async def subscribe_direct(
        self, subject: str, handler: Direct, *, hear_out_s: float = 0
    ) -> Callable[[], Awaitable[None]]:
        """`handler` must not block; what it raises is logged. Gives the function that ends the subscription.

        That waits for so long that what is on its way comes to the handler too.
        """
        sub = await self.subscribe(subject, cb=_unused)
        sid: int = sub._id  # noqa: SLF001 - what `_process_msg` is told
        self._direct[sid] = handler

        async def end() -> None:
            try:
                if not self.is_closed:
                    await sub.unsubscribe()
                if hear_out_s and self.is_connected:
                    with suppress(nats.errors.Error, TimeoutError):
                        async with asyncio.timeout(hear_out_s):
                            await self.fence()
            finally:
                del self._direct[sid]

        return end

    async def fence(self) -> None:
        """What was subscribed or ended before this is known to the server after it; one flush alone is no proof."""
        await self.flush()
        await self.flush()

    async def say(self, subject: str, data: bytes, headers: Headers | None = None) -> None:
        """For what nobody is promised: kept for the next connection, but dropped once too much is kept."""
        with suppress(nats.errors.OutboundBufferLimitError):
            await self.publish(subject, data, headers=dict(headers) if headers else None)

    async def close(self) -> None:
        """Without a connection what was still to be sent goes nowhere: writing it fails, and the close with it."""
        if not self.is_connected:
            self._pending, self._pending_data_size = [], 0
        await super().close()
        if self._reconnection_task is not None and self._reconnection_task is not asyncio.current_task():
            await stop(self._reconnection_task)

    async def _connect_to_server(self, server: Any) -> None:
        if self.is_closed:  # the cancellation that said so was swallowed: it would try for ever
            raise asyncio.CancelledError
        self._leave_the_last()
        await super()._connect_to_server(server)

    def _leave_the_last(self) -> None:
        """A connection that fell silent before it was in use is still open, and hears what others wait for."""
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None:
                task.cancel()
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]

    async def _process_err(self, err_msg: str) -> None:
        """A server that means it hangs up, and then another connection is made; the library would close for good."""
        await self._error_cb(nats.errors.Error(f"nats-server says: {err_msg}"))

    async def _read_loop(self) -> None:
        """The library's, which gets to read what is left to it."""
        reader = self._transport._io_reader  # type: ignore[union-attr]  # noqa: SLF001
        reading = Reading(self._direct, reader.feed_data, self._odd_headers, self.wire.turn_over)
        begun = bytes(reader._buffer)  # noqa: SLF001 - what came before anybody listened
        reader._buffer.clear()  # noqa: SLF001
        reader.feed_data = reading.feed
        reading.feed(begun)
        await super()._read_loop()

    def _odd_headers(self, block: bytes) -> Headers | None:
        """As the library reads them; its coroutine waits for nothing."""
        try:
            self._process_headers(block).send(None)
        except StopIteration as read:
            parsed: Headers | None = read.value
            return parsed
        raise RuntimeError("the library waits while it reads headers")

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        if not headers or len(headers) <= len(_VERSION):
            return None
        try:
            return await super()._process_headers(_readable(headers))
        except UnicodeDecodeError:  # it cuts a status out by bytes, through the middle of a character
            return None

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        names = _readable(subject), _readable(reply)
        return super()._build_message(sid, *names, data, headers)  # type: ignore[no-any-return]


def _readable(text: bytes) -> bytes:
    return text.decode(errors="replace").encode()


async def _unused(_msg: Msg) -> None:
    """A direct subscription's messages never get as far as a callback."""


def without_secrets(url: str) -> str:
    """A url may be written with a password, or with a key in its query; fit to be told."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(slots=True)
class _Watch:
    """What becomes of a connection, told in the log and to whom it concerns."""

    name: str
    on_reconnect: Callable[[], Awaitable[None]] | None
    on_lost: Callable[[], None] | None
    closing: bool = False
    told: str = ""

    async def error(self, error: Exception) -> None:
        """Ten times a second while the server is away: told once."""
        words = str(error) or type(error).__name__
        if words != self.told:
            log.warning("bus.error", connection=self.name, error=words)
        self.told = words

    async def disconnected(self) -> None:
        if not self.closing:
            log.warning("bus.disconnected", connection=self.name)
            if self.on_lost is not None:
                self.on_lost()

    async def reconnected(self) -> None:
        self.told = ""
        log.info("bus.reconnected", connection=self.name)
        if self.on_reconnect is not None:
            await self.on_reconnect()


@asynccontextmanager
async def connect(
    url: str,
    *,
    name: str,
    wait_s: float = 5.0,
    ping_s: int = PING_INTERVAL_S,
    on_reconnect: Callable[[], Awaitable[None]] | None = None,
    on_lost: Callable[[], None] | None = None,
) -> AsyncIterator[BusClient]:
    """A connection that reconnects for ever. Raises UnavailableError when there is no server in `wait_s`.

    After three pings without an answer it counts as lost.
    """
    watch = _Watch(name, on_reconnect, on_lost)
    client = BusClient()
    try:
        async with asyncio.timeout(wait_s):
            await client.connect(
                servers=[url],
                name=name,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # seconds; a float works
                ping_interval=ping_s,
                connect_timeout=2,
                drain_timeout=DRAIN_TIMEOUT_S,
                pending_size=PENDING_BYTES,
                skip_subject_validation=True,
                error_cb=watch.error,
                disconnected_cb=watch.disconnected,
                reconnected_cb=watch.reconnected,
            )
    except BaseException as error:
        await client.close()
        if isinstance(error, TimeoutError | OSError | nats.errors.Error):
            words = f"no nats-server answers within {wait_s:g} s; start one with `llmbus up` or set NATS_URL"
            raise UnavailableError(without_secrets(url), words) from error
        raise
    try:
        yield client
    finally:
        watch.closing = True
        with suppress(RuntimeError):  # which uvloop raises for a connection that is cut and closed already
            await client.close()
