"""One long pull on a durable consumer: messages come as they are stored and are never waited for in batches."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self

import structlog

from adapters.bus.connection import BusClient
from adapters.bus.publish import Publisher
from adapters.bus.wire import Wire, frame
from router.errors import one_error, stop
from router.ports import Handler, Headers, Rest
from subjects.streams import ConsumerSpec

log = structlog.get_logger(__name__)

EXPIRES_S = 30
HEARTBEAT_S = 5
MISSED_HEARTBEATS = 2.5
HEAR_OUT_S = 0.5
"""A broker that does not answer holds nobody up who leaves."""


class JetStreamDelivery:
    """A message in this process's hands; see `router.ports.Delivery`."""

    __slots__ = (
        "_client", "_publisher", "_reply", "_wire", "data", "delivered", "headers", "pending", "seq", "stream",
        "subject", "timestamp_ms",
    )  # fmt: skip

    def __init__(
        self,
        client: BusClient,
        wire: Wire,
        publisher: Publisher,
        subject: str,
        reply: str,
        data: bytes,
        headers: Headers,
    ) -> None:
        self._client = client
        self._wire = wire
        self._publisher = publisher
        self._reply = reply
        self.subject = subject
        self.data = data
        self.headers = headers
        # $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<ns>.<pending>
        tokens = reply.split(".")
        at = 2 if len(tokens) == 9 else 4
        self.stream = tokens[at]
        self.delivered = int(tokens[at + 2])
        self.seq = int(tokens[at + 3])
        self.timestamp_ms = int(tokens[at + 5]) // 1_000_000
        self.pending = int(tokens[at + 6])

    async def ack(self) -> None:
        if not self._wire.write_later(frame(self._reply, "", b"", b"+ACK")):
            await self._client.say(self._reply, b"+ACK")

    async def ack_sync(self) -> None:
        await self._publisher.confirm(self._reply, b"+ACK")

    async def nak(self, delay_ms: int) -> None:
        await self._say(b'-NAK {"delay": %d}' % (delay_ms * 1_000_000))

    async def working(self) -> None:
        await self._say(b"+WPI")

    async def _say(self, words: bytes) -> None:
        if not self._wire.write(frame(self._reply, "", b"", words)):
            await self._client.say(self._reply, words)


class Pull:
    """Keeps one consumer's messages coming; `tasks` owns what handles them."""

    def __init__(
        self, client: BusClient, wire: Wire, publisher: Publisher, spec: ConsumerSpec, handler: Handler,
        batch: Callable[[], int], recreate: Callable[[ConsumerSpec], Awaitable[None]], tasks: asyncio.TaskGroup,
    ) -> None:  # fmt: skip
        self._client = client
        self._wire = wire
        self._publisher = publisher
        self._spec = spec
        self._handler = handler
        self._batch = batch
        self._recreate = recreate
        self._tasks = tasks
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{spec.stream}.{spec.name}"
        self._inbox = client.new_inbox()
        self._outstanding = 0
        self._handed = 0
        """Messages whose task has not begun, so that `batch` may not count them yet."""
        self._leaving = False
        self._heard = 0.0
        self._missing = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, client: BusClient, wire: Wire, publisher: Publisher, spec: ConsumerSpec, handler: Handler,
        batch: Callable[[], int], recreate: Callable[[ConsumerSpec], Awaitable[None]],
    ) -> AsyncIterator[Self]:  # fmt: skip
        """Leaving stops taking, then waits for the handlers under way; leaving by an exception cancels them."""
        with one_error():
            async with asyncio.TaskGroup() as tasks:
                pull = cls(client, wire, publisher, spec, handler, batch, recreate, tasks)
                end = await client.subscribe_direct(pull._inbox, pull._received, hear_out_s=HEAR_OUT_S)
                watcher = tasks.create_task(pull._watch())
                pull.refill()
                try:
                    yield pull
                finally:
                    await stop(watcher)
                    # This also ends the open pull on the server, and what is on its way is given back.
                    pull._leaving = True
                    await end()

    def renew(self) -> None:
        """The connection is new, so the open pull is gone."""
        self._outstanding = 0
        self.refill()

    def refill(self) -> None:
        """Ask for more once half of what may be taken is not asked for."""
        if self._leaving:
            return
        room = self._batch() - self._handed
        want = room - self._outstanding
        if want <= 0 or self._outstanding > room // 2:
            return
        self._heard = time.monotonic()
        ask = {"batch": want, "expires": EXPIRES_S * 10**9, "idle_heartbeat": HEARTBEAT_S * 10**9}
        if self._wire.write(frame(self._subject, self._inbox, b"", json.dumps(ask).encode())):
            self._outstanding += want

    def _received(self, subject: str, reply: str, data: bytes, headers: Headers) -> None:
        self._heard = time.monotonic()
        if self._leaving:
            if reply.startswith("$JS.ACK."):
                self._wire.write(frame(reply, "", b"", b"-NAK"))
            return
        if not reply.startswith("$JS.ACK."):
            self._status(headers)
            return
        self._outstanding = max(0, self._outstanding - 1)
        delivery = JetStreamDelivery(self._client, self._wire, self._publisher, subject, reply, data, headers)
        rest = self._handler(delivery)
        self._handed += 1
        self._tasks.create_task(self._finish(delivery, rest))
        self.refill()

    async def _finish(self, delivery: JetStreamDelivery, rest: Rest) -> None:
        self._handed -= 1
        try:
            await rest()
        except Exception:
            # Unacknowledged: it comes back, and its delivery count tells when it is poison.
            log.exception("delivery.failed", subject=delivery.subject, seq=delivery.seq, delivered=delivery.delivered)
        self.refill()

    def _status(self, headers: Headers) -> None:
        status = headers.get("Status")
        if status == "100":
            return
        if status in ("404", "408", "409"):
            pending = headers.get("Nats-Pending-Messages")
            self._outstanding = max(0, self._outstanding - int(pending)) if pending else 0
        if status == "503" or (status == "409" and "Consumer" in headers.get("Description", "")):
            self._outstanding = 0
            self._missing.set()
            return
        self.refill()

    async def _watch(self) -> None:
        """Notice a pull that was lost without a word, and a consumer that is gone."""
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._missing.wait()
            except TimeoutError:
                silent_s = time.monotonic() - self._heard
                if self._outstanding and silent_s > MISSED_HEARTBEATS * HEARTBEAT_S and self._client.is_connected:
                    self._outstanding = 0
                self.refill()
                continue
            self._missing.clear()
            await asyncio.sleep(0.1)  # a broker that has just started says 503 for a moment
            try:
                await self._recreate(self._spec)
            except Exception as error:  # whatever it is, the next round tries again
                log.warning("consumer.missing", consumer=self._spec.name, error=str(error))
                self._missing.set()
                continue
            self.renew()
