"""Where a request goes after an attempt has failed: the same target, another one, or nowhere. Pure."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from router.core.candidates import expected_tokens_out, node_unable
from router.core.cost import NOTHING, expected_cost_usd
from router.core.tokens import estimate_tokens
from schemas.failure import Failure, FailureKind
from schemas.policy import Policy
from schemas.work import AttemptRecord, Target, WorkItem
from schemas.world import World

MAX_CALLS: Final = 6
MAX_CALLS_EACH: Final = 2
"""Of one target."""

ONCE_MORE: Final = frozenset({FailureKind.SERVER_ERROR, FailureKind.CONNECTION})
"""Worth one more call of the same target."""

IF_ALONE: Final = frozenset({FailureKind.INTERRUPTED, FailureKind.MALFORMED})
"""Worth one more call of the same target when there is no other."""

PATIENT: Final = frozenset({FailureKind.RATE_LIMITED, FailureKind.SERVER_ERROR})
"""Those that may say when to come again."""

LEAST_LEFT_MS: Final = 500
"""A call is put off only if so much is left of its time then."""
SLACK_MS: Final = 50
"""What clocks may differ by: a target is not asked before the time that it gave."""


@dataclass(frozen=True, slots=True)
class NextStep:
    """Where it goes now, what is left behind it, and why; `at_ms`: not before that broker time."""

    target: Target
    fallbacks: tuple[Target, ...]
    why: str
    at_ms: int | None = None


def next_step(
    failure: Failure, work: WorkItem, attempts: tuple[AttemptRecord, ...], world: World, policy: Policy
) -> NextStep | None:
    if len(attempts) >= MAX_CALLS:
        return None
    here = sum((a.node, a.model) == (work.target.node, work.target.model) for a in attempts)
    same = _same_again(failure, work, here, world, policy)
    other = _other(failure, work, attempts, world, policy)
    if same is not None and (other is None or same.at_ms is None or _worth_waiting(same.at_ms, work, world, policy)):
        return same
    if other is not None:
        return other
    once_more = failure.kind in IF_ALONE and here == 1 and world.retries_left != 0
    if once_more and _affordable(work.target, work, attempts, policy):
        return NextStep(work.target, (), "retry_same")
    return _when_a_breaker_lets_it(failure, work, attempts, world, policy)


def _same_again(failure: Failure, work: WorkItem, here: int, world: World, policy: Policy) -> NextStep | None:
    """The target that failed, once more: when it said to come again, or at once."""
    if failure.kind in PATIENT and failure.retry_after_ms is not None:
        at_ms = world.as_of_ms + failure.retry_after_ms + SLACK_MS
        if at_ms + LEAST_LEFT_MS < work.deadline_at_ms:
            return NextStep(work.target, work.fallbacks, "retry_after", at_ms)
        return None
    if failure.kind in ONCE_MORE and here == 1 and world.retries_left != 0:
        view = world.nodes.get(work.target.node)
        if node_unable(view, work.target.model, world.as_of_ms, policy.limits) is None:
            return NextStep(work.target, work.fallbacks, "retry_same")
    return None


def _worth_waiting(at_ms: int, work: WorkItem, world: World, policy: Policy) -> bool:
    """Whether to wait for a target though another could take it now: once, not long, and not when time is critical."""
    waited = any(a.failure and a.failure.retry_after_ms is not None for a in work.priors)
    return not waited and work.urgency != "critical" and at_ms - world.as_of_ms <= policy.limits.max_retry_after_ms


def _other(
    failure: Failure, work: WorkItem, attempts: tuple[AttemptRecord, ...], world: World, policy: Policy
) -> NextStep | None:
    """The first fallback that can take it now."""
    for target in untried(failure, work, attempts, policy):
        if not _affordable(target, work, attempts, policy):
            continue
        view = world.nodes.get(target.node)
        if node_unable(view, target.model, world.as_of_ms, policy.limits) is None:
            left = tuple(other for other in work.fallbacks if other != target)
            return NextStep(target, left, "next_target")
    return None


def untried(failure: Failure, work: WorkItem, attempts: tuple[AttemptRecord, ...], policy: Policy) -> list[Target]:
    """The fallbacks that this failure leaves; those kept for it come first."""
    tried = {(a.node, a.model) for a in attempts}
    if len(tried) >= policy.limits.max_attempts:
        return []
    too_small = (a.model for a in attempts if a.failure and a.failure.kind is FailureKind.CONTEXT_TOO_LONG)
    needed = max((_context(model, policy) for model in too_small), default=0)
    return [
        target
        for target in sorted(work.fallbacks, key=lambda target: target.only_after is not failure.kind)
        if target.only_after in (None, failure.kind)
        and (target.node, target.model) not in tried
        and _context(target.model, policy) > needed
    ]


def _affordable(target: Target, work: WorkItem, attempts: tuple[AttemptRecord, ...], policy: Policy) -> bool:
    """Whether the request's budget, less what failed attempts have cost, is enough for this one too."""
    model = policy.models.get(target.model)
    if work.max_cost_usd is None or model is None or model.costs_nothing:
        return True
    tokens_in = estimate_tokens(work.chat.texts())
    expected = expected_cost_usd(model, tokens_in, expected_tokens_out(work.chat))
    wasted = sum((a.cost_usd for a in attempts if a.cost_usd is not None), NOTHING)
    return expected is not None and wasted + expected <= Decimal(work.max_cost_usd)


def _when_a_breaker_lets_it(
    failure: Failure, work: WorkItem, attempts: tuple[AttemptRecord, ...], world: World, policy: Policy
) -> NextStep | None:
    """What a breaker kept from its call waits for the first that may be tried; without the time for it, it calls all
    the same."""
    if failure.kind is not FailureKind.BREAKER_OPEN:
        return None
    tried = [(a.node, a.model) for a in attempts]
    more = len(set(tried)) < policy.limits.max_attempts
    resting = [
        (_rests_until_ms(target, world), at, target)
        for at, target in enumerate((work.target, *work.fallbacks))
        if target.only_after is None
        and (more if (calls := tried.count((target.node, target.model))) == 0 else calls < MAX_CALLS_EACH)
    ]
    if not resting:
        return None
    at_ms, _, target = min(resting, key=lambda each: each[:2])
    left = tuple(other for other in (work.target, *work.fallbacks) if other != target)
    if at_ms + LEAST_LEFT_MS >= work.deadline_at_ms:
        return NextStep(target.model_copy(update={"forced": True}), left, "breaker_open")
    return NextStep(target, left, "breaker_open", at_ms)


def _rests_until_ms(target: Target, world: World) -> int:
    view = world.nodes.get(target.node)
    state = view.models.get(target.model) if view else None
    return max(world.as_of_ms + LEAST_LEFT_MS, ((state.open_until_ms if state else None) or 0) + SLACK_MS)


def _context(name: str, policy: Policy) -> int:
    model = policy.models.get(name)
    return model.context_tokens if model else 1
