"""What a node puts on the record: that an attempt started, and what became of it."""

from collections.abc import Awaitable
from functools import partial

import structlog

from router.consume import insist
from router.errors import TooLargeError
from router.ports import Bus, Stored
from schemas.event import AttemptEnded, AttemptStarted
from schemas.failure import Failure, FailureKind
from schemas.ids import message_id
from schemas.outcome import Outcome
from schemas.reply import Reply as ReplyBody
from schemas.request import Chat
from schemas.work import AttemptRecord, WorkItem
from subjects import Event, Reply
from subjects import Outcome as OutcomeSubject
from subjects.streams import EVENTS, OUTCOMES, REPLIES

log = structlog.get_logger(__name__)

NOTHING_ASKED = Chat(messages=())
FACTS_BYTES = 65_536
"""What an outcome and a reply hold beside an answer."""


class Reporter:
    """One per node."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._node = node

    def started(self, work: WorkItem, attempt: str, provider: str, now_ms: int) -> Awaitable[Stored]:
        """Record that the attempt is about to call."""
        started = AttemptStarted(
            client=work.client, rid=work.rid, attempt_id=attempt, target=work.target, provider=provider,
            started_ms=now_ms,
        )  # fmt: skip
        return self._bus.send(
            str(Event(work.client, work.rid, "attempt_started")),
            started.encode(),
            msg_id=message_id("attempt_started", work.client, work.rid, attempt),
        )

    async def ended(self, outcome: Outcome) -> None:
        """Store the outcome; it is kept in hand until the bus takes it, so that nothing is run twice for its sake."""
        outcome = _fitting(outcome, self._bus.max_payload_bytes - FACTS_BYTES)
        work = outcome.work
        # What was asked is needed for another attempt only.
        slim = work.model_copy(update={"chat": NOTHING_ASKED}) if outcome.answer is not None else work
        try:
            await insist(partial(self._publish, outcome.model_copy(update={"work": slim})))
        except TooLargeError as error:
            log.warning("answer.too_large", rid=work.rid, node=self._node, model=work.target.model)
            failure = Failure(kind=FailureKind.MALFORMED, message=f"the answer is too large for the bus: {error}")
            await insist(partial(self._publish, outcome.model_copy(update={"answer": None, "failure": failure})))

    async def ended_before(self, work: WorkItem) -> str | None:
        """The id under which this attempt has ended already; empty when there is none, as its request ended without
        it or it was moved elsewhere; None when it has not ended."""
        if (reported := await self.reported(work)) is not None:
            return reported
        ended = await self.recorded(work)
        if ended is None:
            return None
        moved = ended.failure is not None and ended.failure.kind is FailureKind.NODE_LOST
        return "" if moved else ended.attempt_id

    async def reported(self, work: WorkItem) -> str | None:
        """The id under which this attempt has a reply, or an outcome that will bring one; empty when its request has a
        reply without it; else None."""
        prefix = f"{work.attempt}."
        if letter := await self._bus.last(REPLIES, str(Reply(work.client, work.rid))):
            attempts = ReplyBody.decode(letter.data).attempts
            return next((each.attempt_id for each in attempts if each.attempt_id.startswith(prefix)), "")
        async for letter in self._bus.read(OUTCOMES, str(OutcomeSubject(self._node, work.rid))):
            outcome = Outcome.decode(letter.data)
            if (outcome.work.client, outcome.work.attempt) == (work.client, work.attempt):
                return outcome.attempt_id
        return None

    async def recorded(self, work: WorkItem) -> AttemptRecord | None:
        """What `attempt_ended` says of this attempt, as settled or as moved."""
        async for letter in self._bus.read(EVENTS, str(Event(work.client, work.rid, "attempt_ended"))):
            ended = AttemptEnded.decode(letter.data).attempt
            if ended.attempt_id.startswith(f"{work.attempt}."):
                return ended
        return None

    async def starts(self, work: WorkItem) -> int:
        """How often this attempt is on the record as started; of the first time it may be missing."""
        subject = str(Event(work.client, work.rid, "attempt_started"))
        started = [AttemptStarted.decode(letter.data) async for letter in self._bus.read(EVENTS, subject)]
        return sum(each.attempt_id.startswith(f"{work.attempt}.") for each in started)

    def _publish(self, outcome: Outcome) -> Awaitable[Stored]:
        work = outcome.work
        # The id is without the delivery count: of two executions of an attempt the first outcome counts.
        msg_id = message_id("outcome", work.client, work.rid, work.attempt)
        return self._bus.publish(str(OutcomeSubject(self._node, work.rid)), outcome.encode(), msg_id=msg_id)


def _fitting(outcome: Outcome, limit_bytes: int) -> Outcome:
    """Vectors that no message could hold are a failure that nobody repeats: they come out the same, and are billed."""
    answer = outcome.answer
    if answer is None or answer.embeddings is None:
        return outcome
    size_bytes = sum(map(len, answer.embeddings))
    if size_bytes <= limit_bytes:
        return outcome
    message = (
        f"{len(answer.embeddings)} vectors take {size_bytes} bytes and a message of the bus holds {limit_bytes}: "
        "send fewer texts in one request, or ask for fewer `dimensions`"
    )
    failure = Failure(kind=FailureKind.TOO_LARGE, message=message)
    return outcome.model_copy(update={"answer": None, "failure": failure, "partial": answer.usage})
