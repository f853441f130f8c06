"""A node at work: takes what its models have places for, records each attempt, calls the provider, reports an outcome.

It holds no policy and no prices, and never replies to a client. The order of a delivery is: already done?, delivery
count, place, moved elsewhere?, deadline, called off?, breaker, record, call, outcome stored, acknowledgement confirmed.

It hands back what waits for a place when it drains, and also what runs when it was cut off for so long that a router
will have moved it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import structlog
from pydantic import ValidationError

from router.attempt import Recall, Served, call
from router.breaker import Permit
from router.cancels import Cancels, Key
from router.consume import AGAIN_MS, bury, insist
from router.core.candidates import expected_tokens_out
from router.core.waiting import Job
from router.errors import AttemptError, BusError, LlmbusError, one_error, stop
from router.ports import Bus, Delivery, Handler, Stored, later
from router.pulse import Pulse
from router.reporting import Reporter
from router.seat import Seat
from router.shifts import Shifts, Source
from schemas.failure import Failure, FailureKind
from schemas.heartbeat import Heartbeat, Host
from schemas.outcome import AttemptTimings, Outcome
from schemas.work import WorkItem, attempt_id
from subjects.grammar import URGENCIES, Urgency
from subjects.streams import ConsumerSpec, work_consumer

log = structlog.get_logger(__name__)

WORKING_S = 2.0
"""A third of the acknowledgement time."""
COUNT_S = 0.5
UNSTARTED = 4
"""So many times as often as poison may work come back that is not on the record as started."""
DRAIN_S = 30.0
"""What may be finished when the node is told to stop; the rest is handed back."""


class _HandedBackError(LlmbusError):
    """Not to be done here and now; nothing was reported of it."""


@dataclass(slots=True)
class _InHand:
    """A message that was taken and is not acknowledged yet."""

    delivery: Delivery
    """The newest one: the one to acknowledge."""
    lane: ConsumerSpec
    taken_ms: int
    recall: Recall = field(default_factory=Recall)
    key: Key | None = None
    running: bool = False
    movable: bool = False
    """Another target could take it."""
    handed_back: bool = False

    def hand_back(self) -> None:
        self.handed_back = True
        self.recall.now()


class Executor:
    """One node. `seats` by model; `serve` says who answers for each."""

    def __init__(
        self, bus: Bus, node: str, seats: Mapping[str, Seat], *, instance: str, version: str,
        max_deliveries: int = 5, silent_ms: int = 3_500, host: Callable[[], Host] = Host,
    ) -> None:  # fmt: skip
        self._bus = bus
        self.node = node
        self._seats = seats
        self._reporter = Reporter(bus, node)
        self._cancels = Cancels(bus, self._recall)
        self._pulse = Pulse(bus, self.state, silent_ms)
        self._instance = instance
        self._version = version
        self._max_deliveries = max_deliveries
        self._host = host
        self._in_hand: dict[int, _InHand] = {}
        """By sequence."""
        self._shifts = Shifts(
            bus,
            [
                Source(lane, self._handler(seat, lane, urgency), partial(seat.room, urgency))
                for model, seat in seats.items()
                for urgency in URGENCIES
                for lane in [work_consumer(node, model, urgency)]
            ],
        )

    def serve(self, model: str, served: Served) -> None:
        self._seats[model].served = served

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take work until the context ends; then drain, for as long as that may take."""
        with one_error():
            async with asyncio.TaskGroup() as tasks:
                own = [
                    tasks.create_task(each)
                    for each in (self._pulse.run(self._cut_off), self._keep_working(), self._count_for_ever())
                ]
                try:
                    async with self._cancels.listening(), self._shifts.running():
                        await self.resume()
                        yield
                        await self.drain()
                        if not await self._shifts.finished(DRAIN_S):
                            log.warning("node.stopped_with_work_in_hand", node=self.node)
                finally:
                    await stop(*own)

    async def drain(self) -> None:
        """Take nothing new, hand back what waits for a place, and say so; what runs goes on."""
        self._shifts.end()
        self._hand_back(lambda held: not held.running)
        await self._pulse.beat()

    async def resume(self) -> None:
        """Take work again, while what ran before goes on. Raises LlmbusError when the bus does not let us."""
        await self._shifts.begin()
        await self._pulse.beat()

    def _handler(self, seat: Seat, lane: ConsumerSpec, urgency: Urgency) -> Handler:
        async def handle(delivery: Delivery) -> None:
            seat.stands_behind(urgency, delivery.pending)
            if known := self._in_hand.get(delivery.seq):
                # The broker was away for longer than the acknowledgement time: it is being worked on already.
                known.delivery = delivery
                return
            handed_back = not self._shifts.taking
            held = self._in_hand[delivery.seq] = _InHand(delivery, lane, self._bus.now_ms(), handed_back=handed_back)
            try:
                await self._handle(seat, held)
                await held.delivery.ack_sync()
            except _HandedBackError:
                await held.delivery.nak(0)
            except BusError as error:
                log.warning("work.again", subject=delivery.subject, error=str(error))
                await held.delivery.nak(AGAIN_MS)
            except asyncio.CancelledError:
                # Whoever serves this node next need not wait for the acknowledgement to lapse.
                await held.delivery.nak(0)
                raise
            finally:
                del self._in_hand[delivery.seq]

        return later(handle)

    def _hand_back(self, which: Callable[[_InHand], bool]) -> None:
        for held in self._in_hand.values():
            if which(held):
                held.hand_back()

    def _cut_off(self) -> None:
        """For so long that our work will have been moved. What nobody else can take stays ours, running too."""
        self._hand_back(lambda held: held.movable or not held.running)

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
        held.key, held.movable = (work.client, work.rid), bool(work.fallbacks)
        if delivery.delivered > 1 and await self._done_before(seat, work):
            return
        if delivery.delivered > self._max_deliveries and (why := await self._poison(work, delivery)):
            await bury(self._bus, delivery, "poison", f"delivered {delivery.delivered} times without an outcome")
            await self._reporter.ended(self._unanswered(seat, work, delivery, FailureKind.POISON, why))
            return
        if held.key in self._cancels:
            held.recall.now()
        left_s = max(0, work.deadline_at_ms - self._bus.now_ms()) / 1000
        async with AsyncExitStack() as place:
            try:
                async with held.recall.within(left_s):
                    await place.enter_async_context(seat.place(_job(work, delivery), patient=not held.movable))
            except AttemptError as refused:
                failure = refused.failure
                await self._reporter.ended(self._unanswered(seat, work, delivery, failure.kind, failure.message))
                return
            except TimeoutError:
                if held.handed_back:
                    raise _HandedBackError from None
                await self._reporter.ended(self._unanswered(seat, work, delivery, *_never_started(held.recall)))
                return
            if self._pulse.may_be_moved(held.taken_ms) and await self._done_before(seat, work):
                return
            if held.handed_back:
                raise _HandedBackError
            held.running = True
            self._shifts.more(held.lane)  # it waits no longer
            await self._attempt(seat, work, held)

    async def _poison(self, work: WorkItem, delivery: Delivery) -> str | None:
        """Why it seems to bring executors down; not what only waited here while something else did."""
        starts = await self._reporter.starts(work)
        if starts >= self._max_deliveries - 1:
            return f"its attempt was started {starts} times and never ended"
        if delivery.delivered > UNSTARTED * self._max_deliveries:
            return f"it was delivered {delivery.delivered} times, started {starts} times and never ended"
        return None

    async def _done_before(self, seat: Seat, work: WorkItem) -> bool:
        """Whether it has an outcome or a reply, or was moved elsewhere."""
        ended = await self._reporter.ended_before(work)
        if ended:
            # The executor that ran it may have died before its start was recorded; if not, this is a double.
            await insist(partial(self._reporter.started, work, ended, seat.served.provider_name, work.sent_ms))
        return ended is not None

    async def _attempt(self, seat: Seat, work: WorkItem, held: _InHand) -> None:
        """One call of the provider, if it may be made, and its outcome stored."""
        now_ms, served, delivery = self._bus.now_ms(), seat.served, held.delivery
        permit = self._permit(seat, work, held.recall, now_ms)
        if isinstance(permit, tuple):
            await self._reporter.ended(self._unanswered(seat, work, delivery, *permit))
            return
        if permit == "probe":
            await self._pulse.beat()
        attempt = attempt_id(work.attempt, delivery.delivered)
        record = partial(self._reporter.started, work, attempt, served.provider_name, now_ms)
        recorded: Awaitable[Stored] | None = record()
        if delivery.delivered > 1:
            # The decision's record names the first execution; a later one must stand before it can spend.
            await insist(record, recorded)
            recorded = None
        left_ms = work.deadline_at_ms - self._bus.now_ms()  # read again: recording may have waited for the bus
        tried = await call(self._bus, served, work, attempt, left_ms / 1000, held.recall)
        changed = seat.breaker.ended(permit, tried.failure, self._bus.now_ms())
        if held.handed_back and tried.answer is None:
            raise _HandedBackError
        seat.ended(tried)
        if changed:
            await self._pulse.beat()  # ahead of the outcome, so that whoever settles it knows
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
            return FailureKind.UNUSABLE, seat.served.why_not or ""
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

    def state(self) -> Heartbeat:
        """How this node is."""
        return Heartbeat(
            node=self.node,
            instance=self._instance,
            version=self._version,
            draining=not self._shifts.taking,
            models={model: seat.state() for model, seat in self._seats.items()},
            **self._host().model_dump(),
        )

    async def _count_for_ever(self) -> None:
        """What stands behind a line that is full: its deliveries told, but none comes while it is."""
        while True:
            await asyncio.sleep(COUNT_S)
            for model, seat in self._seats.items():
                for urgency in URGENCIES:
                    if seat.room(urgency) <= 0:
                        with suppress(BusError):
                            seat.stands_behind(
                                urgency, await self._bus.waiting(work_consumer(self.node, model, urgency))
                            )

    async def _keep_working(self) -> None:
        """What is in hand, waiting or running, stays ours."""
        while True:
            await asyncio.sleep(WORKING_S)
            for held in tuple(self._in_hand.values()):
                await held.delivery.working()


def _job(work: WorkItem, delivery: Delivery) -> Job:
    return Job(
        delivery.seq, work.target.model, work.urgency, work.sent_ms, work.deadline_at_ms,
        expected_tokens_out(work.chat),
    )  # fmt: skip


def _never_started(recall: Recall) -> tuple[FailureKind, str]:
    if recall.called_off:
        return FailureKind.CANCELLED, "its client called it off before it was started"
    return FailureKind.DEADLINE, "its time ran out in the queue"
