"""A node at work: takes what its models have places for, records each attempt, calls the provider, reports an outcome.

It holds no policy and no prices, and never replies to a client. The order of a delivery is: already done?, delivery
count, place, deadline, called off?, breaker, record, call, outcome stored, acknowledgement confirmed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog
from pydantic import ValidationError

from router.attempt import Recall, Served, call
from router.breaker import Permit
from router.cancels import Cancels, Key
from router.consume import AGAIN_MS, bury, insist
from router.errors import BusError, one_error, stop
from router.lane import Lane
from router.ports import Bus, Delivery, Stored
from router.reporting import Reporter
from router.seat import Seat
from schemas.failure import Failure, FailureKind
from schemas.heartbeat import Heartbeat
from schemas.outcome import AttemptTimings, Outcome
from schemas.work import WorkItem, attempt_id
from subjects.grammar import URGENCIES, Urgency
from subjects.streams import NODES_BUCKET, work_consumer

log = structlog.get_logger(__name__)

HEARTBEAT_S = 2.0
WORKING_S = 2.0
"""A third of the acknowledgement time."""
DRAIN_S = 30.0
"""What may be finished when the node is told to stop; the rest is handed back."""


@dataclass(slots=True)
class _InHand:
    """A message that was taken and is not acknowledged yet."""

    delivery: Delivery
    """The newest one: the one to acknowledge."""
    recall: Recall = field(default_factory=Recall)
    key: Key | None = None


class Executor:
    """One node. `seats` by model; `serve` says who answers for each."""

    def __init__(
        self, bus: Bus, node: str, seats: Mapping[str, Seat], *, instance: str, version: str,
        max_deliveries: int = 5, memory: Callable[[], tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        self._bus = bus
        self.node = node
        self._seats = seats
        self._reporter = Reporter(bus, node)
        self._cancels = Cancels(bus, self._recall)
        self._instance = instance
        self._version = version
        self._max_deliveries = max_deliveries
        self._memory = memory
        self._in_hand: dict[int, _InHand] = {}
        """By sequence."""
        self._draining = False

    def serve(self, model: str, served: Served) -> None:
        self._seats[model].served = served

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take work until the context ends; then finish what is in hand, having said that nothing more is wanted."""
        with one_error():
            async with asyncio.TaskGroup() as tasks:
                beats = [tasks.create_task(self._beat_for_ever()), tasks.create_task(self._keep_working())]
                try:
                    async with self._cancels.listening(), self._lanes():
                        await self.beat()
                        yield
                        self._draining = True
                        await self.beat()
                finally:
                    await stop(*beats)

    @asynccontextmanager
    async def _lanes(self) -> AsyncIterator[None]:
        """Every model's work at every urgency; leaving waits for what is in hand, but not for ever."""
        async with AsyncExitStack() as whole:
            lanes = await whole.enter_async_context(AsyncExitStack())
            for model, seat in self._seats.items():
                for urgency in URGENCIES:
                    spec = work_consumer(self.node, model, urgency)
                    room = partial(self._room, seat.lane, urgency)
                    await lanes.enter_async_context(self._bus.consume(spec, self._handler(seat, urgency), batch=room))
            yield
            try:
                async with asyncio.timeout(DRAIN_S):
                    await lanes.aclose()
            except TimeoutError:
                log.warning("node.stopped_with_work_in_hand", node=self.node)

    def _room(self, lane: Lane, urgency: Urgency) -> int:
        return 0 if self._draining else lane.room(urgency)

    def _handler(self, seat: Seat, urgency: Urgency) -> Callable[[Delivery], Awaitable[None]]:
        async def handle(delivery: Delivery) -> None:
            seat.queued[urgency] = delivery.pending
            if known := self._in_hand.get(delivery.seq):
                # The broker was away for longer than the acknowledgement time: it is being worked on already.
                known.delivery = delivery
                return
            held = self._in_hand[delivery.seq] = _InHand(delivery)
            try:
                await self._handle(seat, held)
                await held.delivery.ack_sync()
            except BusError as error:
                log.warning("work.again", subject=delivery.subject, error=str(error))
                await held.delivery.nak(AGAIN_MS)
            except asyncio.CancelledError:
                # Whoever serves this node next need not wait for the acknowledgement to lapse.
                await held.delivery.nak(0)
                raise
            finally:
                del self._in_hand[delivery.seq]

        return handle

    def _recall(self, key: Key) -> None:
        """Its client called it off: stop what is in hand of it."""
        for held in self._in_hand.values():
            if held.key == key:
                held.recall.now()

    async def _handle(self, seat: Seat, held: _InHand) -> None:
        delivery = held.delivery
        try:
            work = WorkItem.decode(delivery.data)
        except ValidationError as error:
            # Not of a router's making, and it names no client that could be told.
            await bury(self._bus, delivery, "bad_work", f"{error.error_count()} errors: {error.errors()[0]['msg']}")
            return
        held.key = (work.client, work.rid)
        if delivery.delivered > 1 and (ended := await self._reporter.ended_before(work)) is not None:
            if ended:
                # The executor that ran it may have died before its start was recorded; if not, this is a double.
                await insist(partial(self._reporter.started, work, ended, seat.served.provider_name, work.sent_ms))
            return
        if delivery.delivered > self._max_deliveries:
            await bury(self._bus, delivery, "poison", f"delivered {delivery.delivered} times without an outcome")
            why = f"its attempt was started {self._max_deliveries} times and never ended"
            await self._reporter.ended(self._unanswered(seat, work, delivery, FailureKind.POISON, why))
            return
        if held.key in self._cancels:
            held.recall.now()
        left_s = max(0, work.deadline_at_ms - self._bus.now_ms()) / 1000
        async with AsyncExitStack() as place:
            try:
                async with held.recall.within(left_s):
                    await place.enter_async_context(seat.lane.place(work.urgency, delivery.seq))
            except TimeoutError:
                await self._reporter.ended(self._unanswered(seat, work, delivery, *_never_started(held.recall)))
            else:
                await self._attempt(seat, work, held)

    async def _attempt(self, seat: Seat, work: WorkItem, held: _InHand) -> None:
        """One call of the provider, if it may be made, and its outcome stored."""
        now_ms, served, delivery = self._bus.now_ms(), seat.served, held.delivery
        permit = self._permit(seat, work, held.recall, now_ms)
        if isinstance(permit, tuple):
            await self._reporter.ended(self._unanswered(seat, work, delivery, *permit))
            return
        if permit == "probe":
            await self.beat()
        attempt = attempt_id(work.attempt, delivery.delivered)
        record = partial(self._reporter.started, work, attempt, served.provider_name, now_ms)
        recorded: Awaitable[Stored] | None = record()
        if delivery.delivered > 1:
            # The decision's record names the first execution; a later one must stand before it can spend.
            await insist(record, recorded)
            recorded = None
        left_ms = work.deadline_at_ms - self._bus.now_ms()  # read again: recording may have waited for the bus
        tried = await call(self._bus, served, work, attempt, left_ms / 1000, held.recall)
        seat.ended(tried.failure is None)
        if seat.breaker.ended(permit, tried.failure, self._bus.now_ms()):
            await self.beat()  # ahead of the outcome, so that whoever settles it knows
        await self._reporter.ended(
            Outcome(
                work=work,
                attempt_id=attempt,
                node=self.node,
                provider=served.provider_name,
                answer=tried.answer,
                failure=tried.failure,
                partial=tried.partial,
                stand_in=served.stand_in,
                timings=tried.timings(queue_ms=max(0, now_ms - work.sent_ms)),
            )
        )
        if recorded is not None:
            # The work stays ours until its start is on the record too.
            await insist(record, recorded)

    def _permit(self, seat: Seat, work: WorkItem, recall: Recall, now_ms: int) -> Permit | tuple[FailureKind, str]:
        """Leave to call, or why not."""
        if recall.called_off or now_ms >= work.deadline_at_ms:
            return _never_started(recall)
        if not seat.served.usable:
            return FailureKind.UNSUPPORTED, seat.served.why_not or ""
        if permit := seat.breaker.permit(now_ms, forced=bool(work.target.forced)):
            return permit
        return FailureKind.BREAKER_OPEN, "it failed too often of late and is left alone for a moment"

    def _unanswered(self, seat: Seat, work: WorkItem, delivery: Delivery, kind: FailureKind, why: str) -> Outcome:
        """The outcome of a delivery that called nobody; of poison the ones before may have."""
        return Outcome(
            work=work,
            attempt_id=attempt_id(work.attempt, delivery.delivered),
            node=self.node,
            provider=seat.served.provider_name,
            failure=Failure(kind=kind, message=why),
            called=kind is FailureKind.POISON,
            stand_in=seat.served.stand_in,
            timings=AttemptTimings(queue_ms=max(0, self._bus.now_ms() - work.sent_ms)),
        )

    async def beat(self) -> None:
        """Say once how this node is."""
        total, free = self._memory() if self._memory else (None, None)
        beat = Heartbeat(
            node=self.node,
            instance=self._instance,
            version=self._version,
            draining=self._draining,
            memory_total_bytes=total,
            memory_free_bytes=free,
            models={model: seat.state() for model, seat in self._seats.items()},
        )
        await self._bus.tell(f"$KV.{NODES_BUCKET}.{self.node}", beat.encode())

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self.beat()

    async def _keep_working(self) -> None:
        """What is in hand, waiting or running, stays ours."""
        while True:
            await asyncio.sleep(WORKING_S)
            for held in tuple(self._in_hand.values()):
                await held.delivery.working()


def _never_started(recall: Recall) -> tuple[FailureKind, str]:
    if recall.called_off:
        return FailureKind.CANCELLED, "its client called it off before it was started"
    return FailureKind.DEADLINE, "its time ran out in the queue"
