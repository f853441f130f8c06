"""`settle`: from an attempt's outcome to the terminal reply or the next attempt. Pure; only here failures are acted on.

1. It answered: the reply.
2. Nothing may follow (the client's own fault, cancelled, out of time, poison): the error, the upstream's words kept.
3. The same target once more, if the failure may be passing; else the next one that can take it now.
4. Nobody is left, or the bounds are reached: the error that lists every attempt.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from router.core.candidates import node_unable
from router.core.cost import NOTHING, cost_usd, unpriced
from schemas.event import Booking
from schemas.failure import RETRYABLE, Error, ErrorType, Failure, FailureKind, Spent
from schemas.outcome import Answer, Outcome
from schemas.policy import Policy
from schemas.reply import Reply, ReplyMessage, Timings
from schemas.work import AttemptRecord, Target, WorkItem
from schemas.world import World

MAX_CALLS: Final = 6

FINAL: Final = {
    FailureKind.BAD_REQUEST: ErrorType.BAD_REQUEST,
    FailureKind.CONTENT_POLICY: ErrorType.UPSTREAM_ERROR,
    FailureKind.DEADLINE: ErrorType.DEADLINE_EXCEEDED,
    FailureKind.CANCELLED: ErrorType.CANCELLED,
    FailureKind.POISON: ErrorType.POISON,
}
"""After these nothing follows."""

ONCE_MORE: Final = frozenset({FailureKind.SERVER_ERROR, FailureKind.CONNECTION})
"""Worth one more call of the same target."""

SINGLE: Final = {
    FailureKind.RATE_LIMITED: ErrorType.UPSTREAM_RATE_LIMITED,
    FailureKind.SILENCE: ErrorType.UPSTREAM_TIMEOUT,
    FailureKind.INTERRUPTED: ErrorType.UPSTREAM_INTERRUPTED,
    FailureKind.INTERNAL: ErrorType.INTERNAL,
}
"""What a client is told when this was the only attempt; otherwise upstream_error."""

UNSPENT: Final = frozenset(
    {
        FailureKind.BAD_REQUEST,
        FailureKind.AUTH,
        FailureKind.RATE_LIMITED,
        FailureKind.CONNECTION,
        FailureKind.UNSUPPORTED,
        FailureKind.CONTEXT_TOO_LONG,
    }
)
"""Failures before anything was generated."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """Exactly one of `reply` and `retry`, the attempt as it is booked, and why."""

    record: AttemptRecord
    booking: Booking
    why: str
    reply: Reply | None = None
    retry: WorkItem | None = None


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
    attempts = (*work.priors, record)
    if failure.kind in FINAL:
        return _ended(FINAL[failure.kind], failure, work, attempts, booking, world)
    if world.as_of_ms >= work.deadline_at_ms:
        return _ended(ErrorType.DEADLINE_EXCEEDED, failure, work, attempts, booking, world)
    following = _next(failure, work, attempts, world, policy)
    if following is None:
        only = (
            SINGLE.get(failure.kind, ErrorType.UPSTREAM_ERROR) if len(attempts) == 1 else ErrorType.ALL_TARGETS_FAILED
        )
        return _ended(only, failure, work, attempts, booking, world)
    target, fallbacks, why = following
    retry = work.model_copy(
        update={
            "attempt": work.attempt + 1,
            "target": target,
            "fallbacks": fallbacks,
            "priors": attempts,
            "sent_ms": world.as_of_ms,
        }
    )
    return Settlement(record, booking, why, retry=retry)


def unanswered(kind: ErrorType, work: WorkItem, world: World, why: str) -> Reply:
    """The reply of a request that ends without an outcome: its time ran out, or it cannot be brought any further."""
    return _refused(work, _error(kind, work, why, "unknown"), work.priors, world)


def _next(
    failure: Failure, work: WorkItem, attempts: tuple[AttemptRecord, ...], world: World, policy: Policy
) -> tuple[Target, tuple[Target, ...], str] | None:
    """Where it goes now: target, what is left behind it, and why."""
    if len(attempts) >= MAX_CALLS:
        return None
    on_target = sum((a.node, a.model) == (work.target.node, work.target.model) for a in attempts)
    if failure.kind in ONCE_MORE and on_target == 1:
        return work.target, work.fallbacks, "retry_same"
    tried = {(a.node, a.model) for a in attempts}
    if len(tried) >= policy.limits.max_attempts:
        return None
    needed = _context(work.target, policy) if failure.kind is FailureKind.CONTEXT_TOO_LONG else 0
    for at, target in enumerate(work.fallbacks):
        view = world.nodes.get(target.node)
        if (target.node, target.model) in tried or _context(target, policy) <= needed:
            continue
        if node_unable(view, target.model, world.as_of_ms, policy.limits) is None:
            return target, work.fallbacks[at + 1 :], "next_target"
    return None


def _context(target: Target, policy: Policy) -> int:
    model = policy.models.get(target.model)
    return model.context_tokens if model else 1


def _record(outcome: Outcome, policy: Policy) -> AttemptRecord:
    target = outcome.work.target
    model = policy.models.get(target.model)
    usage = outcome.answer.usage if outcome.answer else outcome.partial
    refused = outcome.failure is not None and outcome.failure.kind in UNSPENT
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
        message=ReplyMessage(
            content=answer.text,
            reasoning=answer.reasoning,
            tool_calls=answer.tool_calls,
            thinking_blocks=answer.thinking_blocks,
        ),
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        model=work.target.model,
        backend=work.target.backend,
        node=outcome.node,
        provider=outcome.provider,
        agent_role=work.target.role,
        cost_usd=_total_cost(work.priors, record),
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


def _total_cost(priors: tuple[AttemptRecord, ...], record: AttemptRecord) -> Decimal | None:
    """What the request cost, failed attempts included; not known when one of them is not."""
    costs = [attempt.cost_usd for attempt in (*priors, record)]
    known = [cost for cost in costs if cost is not None]
    return sum(known, NOTHING) if len(known) == len(costs) else None


def _ended(
    kind: ErrorType,
    failure: Failure,
    work: WorkItem,
    attempts: tuple[AttemptRecord, ...],
    booking: Booking,
    world: World,
) -> Settlement:
    spent: Spent = "no" if all(attempt.cost_usd == NOTHING for attempt in attempts) else "unknown"
    if kind is ErrorType.ALL_TARGETS_FAILED:
        message = "every target failed: " + "; ".join(_told(attempt) for attempt in attempts)
    else:
        message = f"{work.target.model}@{work.target.node}: {failure.message}"
        if failure.upstream and failure.upstream not in failure.message:
            message += f"; upstream said: {failure.upstream}"
    error = _error(kind, work, message, spent, failure.retry_after_ms)
    return Settlement(attempts[-1], booking, kind.value, reply=_refused(work, error, attempts, world))


def _told(attempt: AttemptRecord) -> str:
    why = f"{attempt.failure.kind.value}: {attempt.failure.message}" if attempt.failure else "no outcome"
    return f"{attempt.model}@{attempt.node} {why}"


def _error(kind: ErrorType, work: WorkItem, message: str, spent: Spent, retry_after_ms: int | None = None) -> Error:
    return Error(
        type=kind,
        request_id=work.rid,
        message=message,
        retryable=kind in RETRYABLE,
        retry_after_ms=retry_after_ms,
        spent=spent,
    )


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
    )
