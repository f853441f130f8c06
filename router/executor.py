"""A node at work: takes what its models have places for, records each attempt, calls the provider, reports an outcome.

It holds no policy and no prices, and never replies to a client. The order of a delivery is: delivery count, deadline,
already done?, place, record, call, outcome stored, acknowledgement confirmed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog
from pydantic import ValidationError

from router.attempt import Served, call
from router.consume import AGAIN_MS, bury, insist
from router.errors import BusError, TooLargeError, one_error, stop
from router.lane import Lane
from router.ports import Bus, Delivery, Stored
from schemas.event import AttemptEnded, AttemptStarted
from schemas.failure import Failure, FailureKind
from schemas.heartbeat import Heartbeat, ModelState
from schemas.ids import message_id
from schemas.outcome import AttemptTimings, Outcome
from schemas.reply import Reply as ReplyBody
from schemas.request import Chat
from schemas.work import WorkItem, attempt_id
from subjects import Event, Reply
from subjects import Outcome as OutcomeSubject
from subjects.grammar import URGENCIES, Urgency
from subjects.streams import EVENTS, NODES_BUCKET, OUTCOMES, REPLIES, work_consumer

log = structlog.get_logger(__name__)

HEARTBEAT_S = 2.0
WORKING_S = 2.0
"""A third of the acknowledgement time."""
DRAIN_S = 30.0
"""What may be finished when the node is told to stop; the rest is handed back."""
NOTHING_ASKED = Chat(messages=())
RECENT = 20
"""Attempts that count for a model's health."""


@dataclass(slots=True)
class _Seat:
    """A model's places and its recent luck."""

    served: Served
    lane: Lane
    queued: dict[Urgency, int] = field(default_factory=lambda: dict.fromkeys(URGENCIES, 0))
    """What stood behind the last delivery of each urgency, by the broker's count."""
    recent: list[bool] = field(default_factory=list)

    def behind(self, urgency: Urgency) -> int:
        """What waits on the bus: nothing while there is room, for an open pull would have brought it."""
        return self.queued[urgency] if self.lane.room(urgency) <= 0 else 0

    def ended(self, ok: bool) -> None:
        self.recent = [*self.recent[-RECENT + 1 :], ok]


class Executor:
    """One node. `slots` by model; `serve` says who answers for each."""

    def __init__(
        self, bus: Bus, node: str, served: Mapping[str, tuple[int, Served]], *, instance: str, version: str,
        max_deliveries: int = 5, memory: Callable[[], tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        self._bus = bus
        self.node = node
        self._seats = {model: _Seat(what, Lane(slots)) for model, (slots, what) in served.items()}
        self._instance = instance
        self._version = version
        self._max_deliveries = max_deliveries
        self._memory = memory
        self._in_hand: dict[int, Delivery] = {}
        """By sequence; the newest delivery of each is the one to acknowledge."""
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
                    async with self._lanes():
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

    def _handler(self, seat: _Seat, urgency: Urgency) -> Callable[[Delivery], Awaitable[None]]:
        async def handle(delivery: Delivery) -> None:
            seat.queued[urgency] = delivery.pending
            if delivery.seq in self._in_hand:
                # The broker was away for longer than the acknowledgement time: it is being worked on already.
                self._in_hand[delivery.seq] = delivery
                return
            self._in_hand[delivery.seq] = delivery
            try:
                await self._handle(seat, delivery)
                await self._in_hand[delivery.seq].ack_sync()
            except BusError as error:
                log.warning("work.again", subject=delivery.subject, error=str(error))
                await self._in_hand[delivery.seq].nak(AGAIN_MS)
            except asyncio.CancelledError:
                # Whoever serves this node next need not wait for the acknowledgement to lapse.
                await self._in_hand[delivery.seq].nak(0)
                raise
            finally:
                del self._in_hand[delivery.seq]

        return handle

    async def _handle(self, seat: _Seat, delivery: Delivery) -> None:
        try:
            work = WorkItem.decode(delivery.data)
        except ValidationError as error:
            # Not of a router's making, and it names no client that could be told.
            await bury(self._bus, delivery, "bad_work", f"{error.error_count()} errors: {error.errors()[0]['msg']}")
            return
        if delivery.delivered > 1 and (ended := await self._ended_before(work)) is not None:
            if ended:
                # The executor that ran it may have died before its start was recorded; if not, this is a double.
                await insist(partial(self._record, work, ended, seat.served.provider_name, work.sent_ms))
            return
        if delivery.delivered > self._max_deliveries:
            await bury(self._bus, delivery, "poison", f"delivered {delivery.delivered} times without an outcome")
            why = f"its attempt was started {self._max_deliveries} times and never ended"
            await self._report(self._unanswered(seat, work, delivery, FailureKind.POISON, why))
        else:
            async with seat.lane.place(work.urgency, delivery.seq):
                await self._attempt(seat, work, delivery)

    async def _attempt(self, seat: _Seat, work: WorkItem, delivery: Delivery) -> None:
        """One call of the provider, never after the deadline, and its outcome stored."""
        now_ms = self._bus.now_ms()
        served = seat.served
        if now_ms >= work.deadline_at_ms:
            why = "its time ran out in the queue"
            await self._report(self._unanswered(seat, work, delivery, FailureKind.DEADLINE, why))
            return
        if served.why_not is not None:
            await self._report(self._unanswered(seat, work, delivery, FailureKind.UNSUPPORTED, served.why_not))
            return
        attempt = attempt_id(work.attempt, delivery.delivered)
        record = partial(self._record, work, attempt, served.provider_name, now_ms)
        recorded: Awaitable[Stored] | None = record()
        if delivery.delivered > 1:
            # The decision's record names the first execution; a later one must stand before it can spend.
            await insist(record, recorded)
            recorded = None
        left_ms = work.deadline_at_ms - self._bus.now_ms()  # read again: recording may have waited for the bus
        tried = await call(self._bus, served, work, attempt, left_ms / 1000)
        seat.ended(tried.failure is None)
        await self._report(
            Outcome(
                work=work,
                attempt_id=attempt,
                node=self.node,
                provider=served.provider_name,
                answer=tried.answer,
                failure=tried.failure,
                stand_in=served.stand_in,
                timings=tried.timings(queue_ms=max(0, now_ms - work.sent_ms)),
            )
        )
        if recorded is not None:
            # The work stays ours until its start is on the record too.
            await insist(record, recorded)

    def _record(self, work: WorkItem, attempt: str, provider: str, now_ms: int) -> Awaitable[Stored]:
        started = AttemptStarted(
            client=work.client, rid=work.rid, attempt_id=attempt, target=work.target, provider=provider,
            started_ms=now_ms,
        )  # fmt: skip
        return self._bus.send(
            str(Event(work.client, work.rid, "attempt_started")),
            started.encode(),
            msg_id=message_id("attempt_started", work.client, work.rid, attempt),
        )

    async def _ended_before(self, work: WorkItem) -> str | None:
        """The id under which this attempt has ended already; empty when its request ended without it; else None."""
        prefix = f"{work.attempt}."
        if letter := await self._bus.last(REPLIES, str(Reply(work.client, work.rid))):
            attempts = ReplyBody.decode(letter.data).attempts
            return next((each.attempt_id for each in attempts if each.attempt_id.startswith(prefix)), "")
        async for letter in self._bus.read(OUTCOMES, str(OutcomeSubject(self.node, work.rid))):
            outcome = Outcome.decode(letter.data)
            if (outcome.work.client, outcome.work.attempt) == (work.client, work.attempt):
                return outcome.attempt_id
        async for letter in self._bus.read(EVENTS, str(Event(work.client, work.rid, "attempt_ended"))):
            ended = AttemptEnded.decode(letter.data).attempt.attempt_id
            if ended.startswith(prefix):
                return ended
        return None

    async def _report(self, outcome: Outcome) -> None:
        """Store the outcome; it is kept in hand until the bus takes it, so that nothing is run twice for its sake."""
        work = outcome.work
        # What was asked is needed for another attempt only.
        slim = work.model_copy(update={"chat": NOTHING_ASKED}) if outcome.answer is not None else work
        slimmer = outcome.model_copy(update={"work": slim})
        try:
            await insist(lambda: self._publish(slimmer))
        except TooLargeError as error:
            log.warning("answer.too_large", rid=work.rid, node=self.node, model=work.target.model)
            failure = Failure(kind=FailureKind.MALFORMED, message=f"the answer is too large for the bus: {error}")
            await insist(lambda: self._publish(outcome.model_copy(update={"answer": None, "failure": failure})))

    def _publish(self, outcome: Outcome) -> Awaitable[Stored]:
        work = outcome.work
        # The id is without the delivery count: of two executions of an attempt the first outcome counts.
        msg_id = message_id("outcome", work.client, work.rid, work.attempt)
        return self._bus.publish(str(OutcomeSubject(self.node, work.rid)), outcome.encode(), msg_id=msg_id)

    def _unanswered(self, seat: _Seat, work: WorkItem, delivery: Delivery, kind: FailureKind, why: str) -> Outcome:
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
            models={model: _state(seat) for model, seat in self._seats.items()},
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
            for delivery in tuple(self._in_hand.values()):
                await delivery.working()


def _state(seat: _Seat) -> ModelState:
    served, ok = seat.served, sum(seat.recent)
    return ModelState(
        provider=served.provider_name,
        stand_in=served.stand_in,
        slots=seat.lane.slots,
        running=seat.lane.running,
        waiting=seat.lane.waiting + sum(seat.behind(urgency) for urgency in URGENCIES),
        ok=ok,
        failed=len(seat.recent) - ok,
        usable=served.why_not is None,
        why_not=served.why_not,
    )
