"""`router.ports.Bus` on JetStream: pipelined publishes, long pulls, direct reads, one clock."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime

import nats.errors
import structlog

from adapters.bus.clock import BusClock
from adapters.bus.connection import PING_INTERVAL_S, BusClient, connect
from adapters.bus.provision import ProvisionError, ensure_consumer, provision, provision_memory
from adapters.bus.publish import Publisher
from adapters.bus.pull import Pull
from adapters.bus.service import serve
from adapters.bus.wire import check_size, frame, header_block
from router.errors import UnavailableError, one_error, stop
from router.ports import NO_HEADERS, Handler, Headers, Letter, Link, Question, Stored
from subjects.streams import REQUESTS, ConsumerSpec

log = structlog.get_logger(__name__)

API_TIMEOUT_S = 5.0
CLOCK_S = 30.0
NOT_READY_S = 0.5
LAST_FLUSH_S = 1.0
"""What is written gets this long to leave; a broker that is gone holds nobody up."""
READ_BATCH = 256


class JetStreamBus:
    """One connection's view of the bus; made by `open_bus`."""

    def __init__(self, client: BusClient, *, makes: bool = False) -> None:
        self.client = client
        self._makes = makes
        self._clock = BusClock()
        self._clock_unread = asyncio.Event()
        self._link = Link(up=True, since_ms=0)
        self._wire = client.wire
        self._publisher = Publisher(client, self._wire)
        self._pulls: set[Pull] = set()

    @property
    def max_payload_bytes(self) -> int:
        return int(self.client.max_payload)

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def link(self) -> Link:
        return self._link

    def send(
        self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS, msg_id: str | None = None,
        first: bool = False,
    ) -> Awaitable[Stored]:  # fmt: skip
        return self._publisher.send(subject, data, headers=headers, msg_id=msg_id, first=first)

    async def publish(
        self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS, msg_id: str | None = None,
        first: bool = False,
    ) -> Stored:  # fmt: skip
        return await self._publisher.send(subject, data, headers=headers, msg_id=msg_id, first=first)

    async def tell(self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS) -> None:
        block = header_block(headers) if headers else b""
        check_size(self.client, subject, len(block) + len(data))
        if not self._wire.write(frame(subject, "", block, data)):
            await self.client.say(subject, data, headers)

    @asynccontextmanager
    async def consume(
        self, spec: ConsumerSpec, handler: Handler, *, batch: Callable[[], int]
    ) -> AsyncIterator[Callable[[], None]]:
        async def recreate(spec: ConsumerSpec) -> None:
            await ensure_consumer(self.client, spec)

        await recreate(spec)
        async with Pull.open(self.client, self._wire, self._publisher, spec, handler, batch, recreate) as pull:
            self._pulls.add(pull)
            try:
                yield pull.refill
            finally:
                self._pulls.discard(pull)

    async def waiting(self, spec: ConsumerSpec) -> int:
        subject = f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.name}"
        info = await self._request(subject, {})
        if "num_pending" not in info:
            raise UnavailableError(subject, "there is no such consumer")
        return int(str(info["num_pending"]))

    @asynccontextmanager
    async def listen(self, subject: str, on_message: Callable[[str, bytes, Headers], None]) -> AsyncIterator[None]:
        def received(heard: str, _reply: str, data: bytes, headers: Headers) -> None:
            on_message(heard, data, headers)

        end = await self.client.subscribe_direct(subject, received)
        try:
            await self.fence()
            yield
        finally:
            await end()

    async def fence(self) -> None:
        """What was subscribed before this is known to the server after it."""
        await self.client.fence()

    def serve(
        self, subject: str, answer: Callable[[Question], Awaitable[None]], *, name: str, about: str
    ) -> AbstractAsyncContextManager[None]:
        return serve(self.client, subject, answer, name=name, about=about)

    async def last(self, stream: str, subject: str) -> Letter | None:
        return await self._direct(stream, {"last_by_subj": subject})

    async def get(self, stream: str, seq: int) -> Letter | None:
        return await self._direct(stream, {"seq": seq})

    async def read(
        self, stream: str, subject: str = ">", *, start_seq: int = 1, since_ms: int | None = None,
        batch: int = READ_BATCH,
    ) -> AsyncIterator[Letter]:  # fmt: skip
        """With `since_ms`, from that broker time on; `batch` are asked for at a time."""
        start: dict[str, object] = {"seq": start_seq} if since_ms is None else {"start_time": _rfc3339(since_ms)}
        while True:
            letters, pending = await self._direct_batch(stream, {**start, "next_by_subj": subject, "batch": batch})
            for letter in letters:
                yield letter
            if not pending or not letters:
                return
            start = {"seq": letters[-1].seq + 1}

    async def count(self, stream: str, subject: str, start_seq: int = 1) -> int:
        """How many messages of a subject lie there from a sequence on."""
        ask = {"seq": max(1, start_seq), "next_by_subj": subject, "batch": 1}
        letters, pending = await self._direct_batch(stream, ask)
        return len(letters) + pending

    async def lasts(self, stream: str, subjects: Sequence[str]) -> list[Letter]:
        """The newest message of each subject (wildcards allowed) that has one; at most 1024 of them."""
        return (await self._direct_batch(stream, {"multi_last": list(subjects)}))[0] if subjects else []

    async def delete(self, stream: str, seq: int) -> None:
        await self._request(f"$JS.API.STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})

    async def watch(self) -> None:
        """Keep publishes and the clock alive, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publisher.watch())
            pause_s = CLOCK_S
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._clock_unread.wait()
                self._clock_unread.clear()
                pause_s = CLOCK_S
                try:
                    await self.read_clock()
                    if self._makes:
                        await provision_memory(self.client)
                except (UnavailableError, ProvisionError) as error:
                    log.warning("bus.not_ready", error=str(error))
                    pause_s = NOT_READY_S

    async def open(self) -> None:
        await self._publisher.open()
        await self.read_clock()
        self._link = Link(up=True, since_ms=self.now_ms())

    def disconnected(self) -> None:
        if self._link.up:
            self._link = Link(up=False, since_ms=self.now_ms())

    async def reconnected(self) -> None:
        self._link = Link(up=True, since_ms=self.now_ms())
        self._clock_unread.set()
        self._publisher.resend()
        for pull in tuple(self._pulls):
            pull.renew()

    async def read_clock(self) -> None:
        asked_at_s = time.monotonic()
        info = await self._request(f"$JS.API.STREAM.INFO.{REQUESTS}", {})
        if "ts" not in info:
            raise UnavailableError(REQUESTS, "this nats-server carries no llmbus yet; start a router or `llmbus up`")
        broker = datetime.fromisoformat(str(info["ts"])[:26].rstrip("Z") + "+00:00")
        self._clock.set(broker.timestamp() * 1000, asked_at_s, time.monotonic())

    async def _request(self, subject: str, body: dict[str, object]) -> dict[str, object]:
        try:
            msg = await self.client.request(subject, json.dumps(body).encode(), timeout=API_TIMEOUT_S)
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(subject, f"no answer from JetStream: {error or type(error).__name__}") from error
        answer: dict[str, object] = json.loads(msg.data)
        return answer

    async def _direct(self, stream: str, ask: dict[str, object]) -> Letter | None:
        subject = f"$JS.API.DIRECT.GET.{stream}"
        try:
            msg = await self.client.request(subject, json.dumps(ask).encode(), timeout=API_TIMEOUT_S)
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(subject, f"cannot read: {error or type(error).__name__}") from error
        return _letter(subject, msg.data, msg.headers or NO_HEADERS)

    async def _direct_batch(self, stream: str, ask: dict[str, object]) -> tuple[list[Letter], int]:
        """Letters, and how many more there are: the broker ends a batch by size too."""
        subject = f"$JS.API.DIRECT.GET.{stream}"
        inbox = self.client.new_inbox()
        answers: list[tuple[bytes, Headers]] = []
        ended = asyncio.Event()

        def received(_subject: str, _reply: str, data: bytes, headers: Headers) -> None:
            answers.append((data, headers))
            if "Nats-Sequence" not in headers:
                ended.set()

        end = await self.client.subscribe_direct(inbox, received)
        try:
            await self.client.publish(subject, json.dumps(ask).encode(), reply=inbox)
            while not ended.is_set():
                came = len(answers)
                with suppress(TimeoutError):
                    async with asyncio.timeout(API_TIMEOUT_S):
                        await ended.wait()
                if not ended.is_set() and len(answers) == came:
                    raise UnavailableError(subject, f"cannot read: nothing came for {API_TIMEOUT_S:g} s")
        except nats.errors.Error as error:
            raise UnavailableError(subject, f"cannot read: {error or type(error).__name__}") from error
        finally:
            await end()
        letters = [letter for data, headers in answers if (letter := _letter(subject, data, headers))]
        return letters, int(answers[-1][1].get("Nats-Num-Pending", "0"))


def _rfc3339(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()


def _letter(asked: str, data: bytes, headers: Headers) -> Letter | None:
    """A direct-get answer as what was stored; None for its status messages: not found, end of batch."""
    if "Nats-Sequence" not in headers:
        if headers.get("Status") in ("404", "204"):
            return None
        raise UnavailableError(asked, f"cannot read: {headers.get('Status')} {headers.get('Description')}")
    own = {name: value for name, value in headers.items() if name not in _DIRECT_HEADERS}
    stored = datetime.fromisoformat(headers["Nats-Time-Stamp"][:26].rstrip("Z") + "+00:00")
    return Letter(headers["Nats-Subject"], data, own, int(headers["Nats-Sequence"]), round(stored.timestamp() * 1000))


_DIRECT_HEADERS = frozenset(
    {"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence",
     "Nats-UpTo-Sequence"}
)  # fmt: skip


@asynccontextmanager
async def open_bus(
    url: str, *, name: str, wait_s: float = 5.0, make: bool = False, ping_s: int = PING_INTERVAL_S
) -> AsyncIterator[JetStreamBus]:
    """The bus at `url`. Raises UnavailableError, ProvisionError.

    `make` creates or updates its streams first, and those in memory anew when the broker has restarted.
    """
    bus: JetStreamBus | None = None

    async def on_reconnect() -> None:
        if bus is not None:
            await bus.reconnected()

    def on_lost() -> None:
        if bus is not None:
            bus.disconnected()

    async with connect(
        url, name=name, wait_s=wait_s, ping_s=ping_s, on_reconnect=on_reconnect, on_lost=on_lost
    ) as client:
        if make:
            await provision(client)
        bus = JetStreamBus(client, makes=make)
        await bus.open()
        with one_error():
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(bus.watch())
                try:
                    yield bus
                finally:
                    await stop(watch)
                    client.wire.flush()
                    if client.is_connected:
                        with suppress(nats.errors.Error, TimeoutError):
                            async with asyncio.timeout(LAST_FLUSH_S):
                                await client.flush()
