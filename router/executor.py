"""A node at work: takes what its models have places for, records each attempt, calls the provider, reports an outcome.

It holds no policy and no prices, and never replies to a client. The order of a delivery is: delivery count, deadline,
already done?, place, record, call, outcome stored, acknowledgement confirmed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog
from pydantic import ValidationError

from router.consume import AGAIN_MS, bury
from router.errors import AttemptError, BusError, TooLargeError, one_error
from router.lane import Lane
from router.ports import Bus, Call, Delivery, Progress, Provider
from schemas.chunk import Chunk
from schemas.event import AttemptStarted
from schemas.failure import Failure, FailureKind
from schemas.heartbeat import Heartbeat, ModelState
from schemas.ids import message_id
from schemas.outcome import Answer, AttemptTimings, Outcome
from schemas.work import WorkItem, attempt_id
from subjects import Chunk as ChunkSubject
from subjects import Event, Reply
from subjects import Outcome as OutcomeSubject
from subjects.grammar import URGENCIES, Urgency
from subjects.streams import EVENTS, NODES_BUCKET, OUTCOMES, REPLIES, work_consumer

log = structlog.get_logger(__name__)

HEARTBEAT_S = 2.0
WORKING_S = 2.0
"""A third of the acknowledgement time."""
RECENT = 20
"""Attempts that count for a model's health."""


@dataclass(slots=True)
class Served:
    """A model as this node serves it right now; replaced when a probe finds something else."""

    provider: Provider
    provider_name: str
    stand_in: bool = False
    why_not: str | None = None
    """Why it cannot be used, and what to do."""


@dataclass(slots=True)
class _Seat:
    """A model's places and its recent luck."""

    served: Served
    lane: Lane
    queued: dict[Urgency, int] = field(default_factory=lambda: dict.fromkeys(URGENCIES, 0))
    """What stood behind the last delivery of each urgency, by the broker's count."""
    recent: list[bool] = field(default_factory=list)

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
        self._in_hand: set[Delivery] = set()
        self._draining = False

    def serve(self, model: str, served: Served) -> None:
        self._seats[model].served = served

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take work until the context ends; then finish what is in hand, having said that nothing more is wanted."""
        async with asyncio.TaskGroup() as tasks:
            beats = [tasks.create_task(self._beat_for_ever()), tasks.create_task(self._keep_working())]
            try:
                async with AsyncExitStack() as stack:
                    for model, seat in self._seats.items():
                        for urgency in URGENCIES:
                            spec = work_consumer(self.node, model, urgency)
                            handle = self._handler(seat, urgency)
                            room = partial(seat.lane.room, urgency)
                            await stack.enter_async_context(self._bus.consume(spec, handle, batch=room))
                    await self.beat()
                    yield
                    self._draining = True
                    await self.beat()
            finally:
                for beat in beats:
                    beat.cancel()

    def _handler(self, seat: _Seat, urgency: Urgency) -> Callable[[Delivery], Awaitable[None]]:
        async def handle(delivery: Delivery) -> None:
            seat.queued[urgency] = delivery.pending
            self._in_hand.add(delivery)
            try:
                await self._handle(seat, delivery)
            except BusError as error:
                log.warning("work.again", subject=delivery.subject, error=str(error))
                await delivery.nak(AGAIN_MS)
            finally:
                self._in_hand.discard(delivery)

        return handle

    async def _handle(self, seat: _Seat, delivery: Delivery) -> None:
        try:
            work = WorkItem.decode(delivery.data)
        except ValidationError as error:
            await bury(self._bus, delivery, "bad_work", f"{error.error_count()} errors: {error.errors()[0]['msg']}")
            await delivery.ack()
            return
        if delivery.delivered > 1 and await self._already_done(work):
            await delivery.ack_sync()
            return
        if delivery.delivered > self._max_deliveries:
            await bury(self._bus, delivery, "poison", f"delivered {delivery.delivered} times without an outcome")
            why = f"its attempt was started {self._max_deliveries} times and never ended"
            outcome = self._unanswered(seat, work, delivery, FailureKind.POISON, why)
        else:
            async with seat.lane.place(work.urgency, delivery.seq):
                outcome = await self._attempt(seat, work, delivery)
        await self._report(outcome)
        await delivery.ack_sync()

    async def _attempt(self, seat: _Seat, work: WorkItem, delivery: Delivery) -> Outcome:
        """One call of the provider, never after the deadline."""
        left_ms = work.deadline_at_ms - self._bus.now_ms()
        if left_ms <= 0:
            return self._unanswered(seat, work, delivery, FailureKind.DEADLINE, "its time ran out in the queue")
        served = seat.served
        if served.why_not is not None:
            return self._unanswered(seat, work, delivery, FailureKind.UNSUPPORTED, served.why_not)
        queue_ms = max(0, self._bus.now_ms() - work.sent_ms)
        attempt = attempt_id(work.attempt, delivery.delivered)
        started = AttemptStarted(
            client=work.client, rid=work.rid, attempt_id=attempt, target=work.target, provider=served.provider_name,
            started_ms=self._bus.now_ms(),
        )  # fmt: skip
        recorded = await self._bus.send(
            str(Event(work.client, work.rid, "attempt_started")),
            started.encode(),
            msg_id=message_id("attempt_started", work.client, work.rid, attempt),
        )
        if delivery.delivered > 1:
            # The decision's record names the first execution; a later one must stand before it can spend.
            await recorded
        begun = time.monotonic()
        first: list[float] = []
        answer, failure = await self._call(served, work, attempt, left_ms / 1000, first)
        if delivery.delivered == 1:
            await recorded
        seat.ended(failure is None)
        return Outcome(
            work=work,
            attempt_id=attempt,
            node=self.node,
            provider=served.provider_name,
            answer=answer,
            failure=failure,
            stand_in=served.stand_in,
            timings=AttemptTimings(
                queue_ms=queue_ms,
                load_ms=answer.load_ms if answer else None,
                first_token_ms=round((first[0] - begun) * 1000, 3) if first else None,
                total_ms=round((time.monotonic() - begun) * 1000, 3),
            ),
        )

    async def _call(
        self, served: Served, work: WorkItem, attempt: str, left_s: float, first: list[float]
    ) -> tuple[Answer | None, Failure | None]:
        target = work.target
        call = Call(
            backend=target.backend,
            chat=work.chat,
            first_token_ms=target.first_token_ms,
            idle_ms=target.idle_ms,
            stands_in_for=target.backend if served.stand_in else None,
        )
        try:
            async with asyncio.timeout(left_s), _chunks(self._bus, work, attempt, first) as progress:
                return await served.provider.chat(call, progress), None
        except AttemptError as error:
            return None, error.failure
        except TimeoutError:
            return None, Failure(kind=FailureKind.DEADLINE, message="its time ran out while the model was answering")
        except Exception as error:
            log.exception("attempt.failed", rid=work.rid, node=self.node, model=target.model)
            return None, Failure(kind=FailureKind.INTERNAL, message=f"{type(error).__name__} in {served.provider_name}")

    async def _already_done(self, work: WorkItem) -> bool:
        """It came back, but an outcome of this attempt, or the reply, is stored: nothing is to be run."""
        if await self._bus.last(REPLIES, str(Reply(work.client, work.rid))):
            return True
        letter = await self._bus.last(OUTCOMES, str(OutcomeSubject(self.node, work.rid)))
        if letter is not None:
            waiting = Outcome.decode(letter.data).work
            if (waiting.client, waiting.attempt) == (work.client, work.attempt):
                return True
        ended = str(Event(work.client, work.rid, "attempt_ended"))
        return len([event async for event in self._bus.read(EVENTS, ended)]) >= work.attempt

    async def _report(self, outcome: Outcome) -> None:
        work = outcome.work
        subject = str(OutcomeSubject(self.node, work.rid))
        # Without the delivery count: of two executions of an attempt the first outcome counts.
        msg_id = message_id("outcome", work.client, work.rid, work.attempt)
        try:
            await self._bus.publish(subject, outcome.encode(), msg_id=msg_id)
        except TooLargeError as error:
            failure = Failure(kind=FailureKind.MALFORMED, message=f"the answer is too large for the bus: {error}")
            small = outcome.model_copy(update={"answer": None, "failure": failure})
            await self._bus.publish(subject, small.encode(), msg_id=msg_id)

    def _unanswered(self, seat: _Seat, work: WorkItem, delivery: Delivery, kind: FailureKind, why: str) -> Outcome:
        """The outcome of an attempt that called nobody."""
        return Outcome(
            work=work,
            attempt_id=attempt_id(work.attempt, delivery.delivered),
            node=self.node,
            provider=seat.served.provider_name,
            failure=Failure(kind=kind, message=why),
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
            for delivery in tuple(self._in_hand):
                await delivery.working()


def _state(seat: _Seat) -> ModelState:
    served, ok = seat.served, sum(seat.recent)
    return ModelState(
        provider=served.provider_name,
        stand_in=served.stand_in,
        slots=seat.lane.slots,
        running=seat.lane.running,
        waiting=seat.lane.waiting + sum(seat.queued.values()),
        ok=ok,
        failed=len(seat.recent) - ok,
        usable=served.why_not is None,
        why_not=served.why_not,
    )


@asynccontextmanager
async def _chunks(bus: Bus, work: WorkItem, attempt: str, first: list[float]) -> AsyncIterator[Progress]:
    """Note when the first token came; send numbered chunks if the client wants a stream."""
    pieces: asyncio.Queue[tuple[str, str | None] | None] = asyncio.Queue()

    def piece(text: str, reasoning: str | None = None) -> None:
        if not first:
            first.append(time.monotonic())
        if work.chat.stream:
            pieces.put_nowait((text, reasoning))

    progress = Progress(on_text=piece, on_reasoning=lambda thought: piece("", thought))
    if not work.chat.stream:
        yield progress
        return

    async def send() -> None:
        n = 0
        while (item := await pieces.get()) is not None:
            chunk = Chunk(request_id=work.rid, attempt_id=attempt, n=n, text=item[0], reasoning=item[1])
            await bus.tell(str(ChunkSubject(work.client, work.rid, n)), chunk.encode())
            n += 1

    with one_error():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            try:
                yield progress
            finally:
                pieces.put_nowait(None)
