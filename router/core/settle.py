"""`settle`: from an attempt's outcome to the terminal reply or the next attempt. Pure; only here failures are acted on.

1. It answered: the reply.
2. Nothing may follow (the client's own fault, cancelled, out of time, poison): the error, the upstream's words kept.
3. The same target once more, now or when it asked to be asked again, if the failure may be passing.
4. Else the next one that can take it now; else whichever open breaker may be tried again in time.
5. Nobody is left, or the bounds are reached: the error that lists every attempt.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from router.core.cost import NOTHING, cost_usd, unpriced
from router.core.next_step import next_step, untried
from schemas.event import Booking
from schemas.failure import Error, ErrorType, Failure, FailureKind, Spent
from schemas.outcome import Answer, Outcome
from schemas.policy import Policy
from schemas.reply import Reply, ReplyMessage, Timings
from schemas.work import AttemptRecord, WorkItem
from schemas.world import World

FINAL: Final = {
    FailureKind.BAD_REQUEST: ErrorType.BAD_REQUEST,
    FailureKind.CONTENT_POLICY: ErrorType.UPSTREAM_ERROR,
    FailureKind.DEADLINE: ErrorType.DEADLINE_EXCEEDED,
    FailureKind.CANCELLED: ErrorType.CANCELLED,
    FailureKind.POISON: ErrorType.POISON,
    FailureKind.TOO_LARGE: ErrorType.PAYLOAD_TOO_LARGE,
}
"""After these nothing follows."""

SINGLE: Final = {
    FailureKind.RATE_LIMITED: ErrorType.UPSTREAM_RATE_LIMITED,
    FailureKind.SILENCE: ErrorType.UPSTREAM_TIMEOUT,
    FailureKind.INTERRUPTED: ErrorType.UPSTREAM_INTERRUPTED,
    FailureKind.INTERNAL: ErrorType.INTERNAL,
}
"""What a client is told when this was the only attempt; otherwise upstream_error."""

BEYOND: Final = frozenset({FailureKind.UNSUPPORTED, FailureKind.CONTEXT_TOO_LONG})
"""What is asked is more than the target can do; where that is so of all of them, it is the request's own fault."""

UNSPENT: Final = frozenset(
    {
        FailureKind.BAD_REQUEST,
        FailureKind.AUTH,
        FailureKind.RATE_LIMITED,
        FailureKind.CONNECTION,
        FailureKind.SERVER_ERROR,
        FailureKind.INSUFFICIENT_MEMORY,
        FailureKind.BREAKER_OPEN,
        FailureKind.UNSUPPORTED,
        FailureKind.UNUSABLE,
        FailureKind.CONTEXT_TOO_LONG,
    }
)
"""Failures in place of an answer: nobody bills them."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Exactly one of `reply` and `retry`, the attempt as it is booked, and why. `retry_at_ms`: not before that."""

    record: AttemptRecord
    booking: Booking
    why: str
    reply: Reply | None = None
    retry: WorkItem | None = None
    retry_at_ms: int | None = None


def settle(outcome: Outcome, world: World, policy: Policy) -> Settlement:
    work = outcome.work
    record = _record(outcome, policy)
    if outcome.answer is not None:
        reply = _answered(outcome, outcome.answer, record, world)
        return Settlement(record, "billed", "answered", reply=reply)
    failure = outcome.failure or Failure(
        kind=FailureKind.INTERNAL, message="the outcome says neither answer nor failure"
    )
    booking: Booking = "unknown" if record.cost_usd is None else "wasted"
    # Nobody was called for an open breaker, nor on a node that was lost before it began: it is no attempt.
    uncalled = failure.kind is FailureKind.NODE_LOST and not outcome.called
    attempts = work.priors if uncalled or failure.kind is FailureKind.BREAKER_OPEN else (*work.priors, record)

    def ended(kind: ErrorType) -> Settlement:
        return _ended(kind, failure, work, attempts, record, booking, world)

    if failure.kind in FINAL:
        return ended(FINAL[failure.kind])
    if world.cancelled:
        return ended(ErrorType.CANCELLED)
    if world.as_of_ms >= work.deadline_at_ms:
        return ended(ErrorType.DEADLINE_EXCEEDED)
    following = next_step(failure, work, attempts, world, policy)
    if following is None:
        return ended(_conclusion(failure, work, attempts, policy))
    retry = work.model_copy(
        update={
            "attempt": work.attempt + 1,
            "target": following.target,
            # A node that is back by then may be asked after all the others.
            "fallbacks": (*following.fallbacks, work.target) if uncalled else following.fallbacks,
            "priors": attempts,
            "sent_ms": following.at_ms or world.as_of_ms,
        }
    )
    return Settlement(record, booking, following.why, retry=retry, retry_at_ms=following.at_ms)


def unanswered(kind: ErrorType, work: WorkItem, world: World, why: str, spent: Spent = "unknown") -> Reply:
    """The reply of a request that ends without an outcome: its time ran out, or it cannot be brought any further."""
    return _refused(work, _error(kind, work, why, spent), work.priors, world)


def _conclusion(failure: Failure, work: WorkItem, attempts: tuple[AttemptRecord, ...], policy: Policy) -> ErrorType:
    """What it comes to that nothing follows."""
    beyond = failure.kind in BEYOND and all(a.failure and a.failure.kind in BEYOND for a in attempts)
    if beyond and not untried(failure, work, attempts, policy):
        return ErrorType.BAD_REQUEST
    if len(attempts) <= 1:
        return SINGLE.get(failure.kind, ErrorType.UPSTREAM_ERROR)
    return ErrorType.ALL_TARGETS_FAILED


def _record(outcome: Outcome, policy: Policy) -> AttemptRecord:
    target = outcome.work.target
    model = policy.models.get(target.model)
    refused = outcome.failure is not None and outcome.failure.kind in UNSPENT
    usage = outcome.answer.usage if outcome.answer else None if refused else outcome.partial
    spent = outcome.called and not outcome.stand_in and not refused
    cost = cost_usd(model, usage, outcome.timings.total_ms) if spent else NOTHING
    return AttemptRecord(
        attempt_id=outcome.attempt_id,
        node=outcome.node,
        model=target.model,
        provider=outcome.provider,
        failure=outcome.failure,
        usage=usage,
        cost_usd=cost,
        unpriced=unpriced(model) if cost is None else None,
        prices=model.price.source if cost and model and model.price else None,
        total_ms=outcome.timings.total_ms,
    )


def _answered(outcome: Outcome, answer: Answer, record: AttemptRecord, world: World) -> Reply:
    work, spent = outcome.work, outcome.timings
    first = spent.first_token_ms
    notice = None
    if outcome.stand_in:
        notice = f"no model answered: loopback stood in for {work.target.backend}"
    return Reply(
        request_id=work.rid,
        client=work.client,
        request_hash=work.request_hash,
        status="ok",
        message=_message(answer),
        embeddings=answer.embeddings,
        finish_reason=answer.finish_reason if answer.embeddings is None else None,
        stop_sequence=answer.stop_sequence,
        usage=answer.usage,
        model=work.target.model,
        backend=work.target.backend,
        node=outcome.node,
        provider=outcome.provider,
        agent_role=work.target.role,
        cost_usd=record.cost_usd,
        wasted_usd=_wasted(work.priors),
        timings=Timings(
            queue_ms=spent.queue_ms,
            load_ms=spent.load_ms,
            first_token_ms=first,
            generation_ms=None if first is None else round(spent.total_ms - first, 3),
            total_ms=world.as_of_ms - world.received_ms,
        ),
        attempts=(*work.priors, record),
        decision=work.decision,
        policy=work.policy,
        notice=notice,
        traceparent=work.traceparent,
    )


def _message(answer: Answer) -> ReplyMessage | None:
    if answer.embeddings is not None:
        return None
    return ReplyMessage(
        content=answer.text,
        reasoning=answer.reasoning,
        tool_calls=answer.tool_calls,
        thinking_blocks=answer.thinking_blocks,
    )


def _wasted(attempts: tuple[AttemptRecord, ...]) -> Decimal | None:
    """What attempts without an answer have cost, as far as it is known; None when nothing."""
    return sum((a.cost_usd for a in attempts if a.cost_usd is not None), NOTHING) or None


def _ended(
    kind: ErrorType,
    failure: Failure,
    work: WorkItem,
    attempts: tuple[AttemptRecord, ...],
    record: AttemptRecord,
    booking: Booking,
    world: World,
) -> Settlement:
    if kind is ErrorType.ALL_TARGETS_FAILED or (failure.kind in BEYOND and len(attempts) > 1):
        message = "every target failed: " + "; ".join(_told(attempt) for attempt in attempts)
    else:
        message = f"{work.target.model}@{work.target.node}: {failure.message}"
        if failure.upstream and failure.upstream not in failure.message:
            message += f"; upstream said: {failure.upstream}"
    error = _error(kind, work, message, _spent(attempts), failure.retry_after_ms)
    return Settlement(record, booking, kind.value, reply=_refused(work, error, attempts, world))


def _spent(attempts: tuple[AttemptRecord, ...]) -> Spent:
    if all(attempt.cost_usd == NOTHING for attempt in attempts):
        return "no"
    sure = all(attempt.cost_usd is not None and not (attempt.usage and attempt.usage.estimated) for attempt in attempts)
    return "yes" if sure else "unknown"


def _told(attempt: AttemptRecord) -> str:
    why = f"{attempt.failure.kind.value}: {attempt.failure.message}" if attempt.failure else "no outcome"
    return f"{attempt.model}@{attempt.node} {why}"


def _error(kind: ErrorType, work: WorkItem, message: str, spent: Spent, retry_after_ms: int | None = None) -> Error:
    return Error.of(kind, work.rid, message, retry_after_ms=retry_after_ms, spent=spent)


def _refused(work: WorkItem, error: Error, attempts: tuple[AttemptRecord, ...], world: World) -> Reply:
    return Reply.refused(
        client=work.client,
        request_hash=work.request_hash,
        error=error,
        total_ms=world.as_of_ms - world.received_ms,
        decision=work.decision,
        policy=work.policy,
        traceparent=work.traceparent,
        attempts=attempts,
        wasted_usd=_wasted(attempts),
    )
