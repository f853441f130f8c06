"""Where a request goes after a failure: the same target once more, another one, or a wait for one."""

from decimal import Decimal

import pytest

from schemas.failure import RETRYABLE, ErrorType, FailureKind
from schemas.heartbeat import ModelState
from schemas.work import Usage
from schemas.world import NodeView, World
from tests.support.attempts import (
    AGAIN,
    BIG_A,
    BIG_B,
    NEXT,
    PAID,
    POLICY,
    TINY_B,
    ended,
    error_of,
    next_of,
    run,
    settled,
    target,
    work,
)
from tests.support.decisions import NOW, small, world


@pytest.mark.parametrize("kind", [FailureKind.INTERRUPTED, FailureKind.MALFORMED])
def test_what_broke_within_its_answer_is_tried_once_more_only_when_there_is_nobody_else(kind: FailureKind) -> None:
    assert next_of(settled(ended(work(fallbacks=()), kind))) == AGAIN
    assert error_of(run(work(fallbacks=()), kind, kind)) is ErrorType.ALL_TARGETS_FAILED


@pytest.mark.parametrize("kind", [FailureKind.SERVER_ERROR, FailureKind.CONNECTION])
def test_what_may_pass_is_tried_once_more_and_then_elsewhere(kind: FailureKind) -> None:
    assert next_of(run(work(), kind)) == AGAIN
    assert next_of(run(work(), kind, kind)) == NEXT
    assert next_of(run(work(), kind, kind, kind)) == ("big", "b", "retry_same")


PATIENT = [FailureKind.RATE_LIMITED, FailureKind.SERVER_ERROR]


@pytest.mark.parametrize("kind", PATIENT)
def test_a_target_that_says_when_to_come_again_is_asked_again_then_and_not_before(kind: FailureKind) -> None:
    result = settled(ended(work(), kind, retry_after_ms=2_000))
    assert next_of(result) == ("big", "a", "retry_after")
    assert result.retry is not None
    assert result.retry_at_ms == result.retry.sent_ms
    assert NOW + 2_500 < result.retry_at_ms < NOW + 2_600
    assert next_of(settled(ended(result.retry, kind, retry_after_ms=2_000))) == NEXT  # once is enough


@pytest.mark.parametrize("kind", PATIENT)
def test_a_long_wait_is_for_those_who_have_nobody_else_and_the_time(kind: FailureKind) -> None:
    long_ms = POLICY.limits.max_retry_after_ms + 1
    assert next_of(settled(ended(work(), kind, retry_after_ms=long_ms))) == NEXT
    assert next_of(settled(ended(work(fallbacks=()), kind, retry_after_ms=long_ms)))[2] == "retry_after"
    told = settled(ended(work(fallbacks=()), kind, retry_after_ms=60_000))
    assert error_of(told) in RETRYABLE | {ErrorType.UPSTREAM_ERROR}
    assert told.reply is not None
    assert told.reply.error is not None
    assert told.reply.error.retry_after_ms == 60_000


def test_a_critical_request_does_not_wait_while_another_can_take_it() -> None:
    critical = work().model_copy(update={"urgency": "critical"})
    assert next_of(settled(ended(critical, FailureKind.RATE_LIMITED, retry_after_ms=1_000))) == NEXT


def test_when_the_retries_of_these_seconds_are_used_up_the_next_target_is_taken() -> None:
    spent = world(POLICY, as_of_ms=NOW + 500).model_copy(update={"retries_left": 0})
    assert next_of(settled(ended(work(), FailureKind.SERVER_ERROR), spent)) == NEXT


def opened(until_ms: int, *models: str) -> World:
    """The named models' breakers are open everywhere."""
    seen = world(POLICY, as_of_ms=NOW + 500)
    views = {
        node: view.model_copy(
            update={
                "models": {
                    name: state.model_copy(update={"breaker": "open", "open_until_ms": until_ms})
                    if name in models
                    else state
                    for name, state in view.models.items()
                }
            }
        )
        for node, view in seen.nodes.items()
    }
    return seen.model_copy(update={"nodes": views})


def test_a_target_whose_breaker_is_open_is_stepped_over() -> None:
    assert next_of(settled(ended(work(), FailureKind.SERVER_ERROR), opened(NOW + 5_000, "big"))) == (
        "tiny", "b", "next_target",
    )  # fmt: skip


def test_when_all_breakers_are_open_it_waits_for_the_first_that_may_be_tried_and_is_no_attempt() -> None:
    everybody = opened(NOW + 5_000, "big", "tiny", "paid")
    result = settled(
        ended(
            work(),
            FailureKind.BREAKER_OPEN,
        ),
        everybody,
    )
    assert next_of(result) == ("big", "a", "breaker_open")
    assert result.retry is not None
    assert result.retry_at_ms is not None
    assert NOW + 5_000 < result.retry_at_ms < NOW + 5_100
    assert result.retry.priors == ()
    assert result.record.cost_usd == 0
    assert set(result.retry.fallbacks) == {BIG_B, TINY_B, PAID}


def test_when_no_breaker_opens_in_time_the_least_bad_is_called_all_the_same() -> None:
    result = settled(ended(work(), FailureKind.BREAKER_OPEN), opened(NOW + 60_000, "big", "tiny", "paid"))
    assert result.retry is not None
    assert (result.retry.target.forced, result.retry_at_ms) == (True, None)


def test_a_node_that_is_lost_is_never_the_next_one_and_what_ran_there_may_have_cost_anything() -> None:
    silent = NodeView(heard_ms=NOW - 9_000, models={"big": ModelState(provider="p"), "tiny": ModelState(provider="p")})
    seen = world(POLICY, as_of_ms=NOW + 500, b=silent)
    result = settled(ended(work(at=BIG_B, fallbacks=(TINY_B, BIG_A, PAID)), FailureKind.NODE_LOST), seen)
    assert next_of(result) == ("big", "a", "next_target")
    assert (result.booking, result.record.cost_usd) == ("wasted", Decimal(0)), (
        "our own machine, where nothing has a price"
    )
    assert result.retry is not None
    assert [a.node for a in result.retry.priors] == ["b"]
    assert BIG_B not in result.retry.fallbacks
    paid = settled(ended(work(at=PAID, fallbacks=(BIG_A,)), FailureKind.NODE_LOST))
    assert (paid.booking, paid.record.cost_usd, paid.record.unpriced) == ("unknown", None, "no_usage")


def test_work_that_a_lost_node_had_not_begun_is_no_attempt_and_may_come_back_last() -> None:
    unbegun = ended(work(at=PAID, fallbacks=(BIG_A, BIG_B)), FailureKind.NODE_LOST).model_copy(update={"called": False})
    result = settled(unbegun)
    assert next_of(result) == ("big", "a", "next_target")
    assert (result.booking, result.record.cost_usd) == ("wasted", Decimal(0))
    assert result.retry is not None
    assert (result.retry.priors, result.retry.fallbacks) == ((), (BIG_B, PAID))


def test_a_request_that_was_called_off_gets_no_other_attempt() -> None:
    seen = world(POLICY, as_of_ms=NOW + 500).model_copy(update={"cancelled": True})
    assert error_of(settled(ended(work(), FailureKind.SERVER_ERROR), seen)) is ErrorType.CANCELLED


@pytest.mark.parametrize(("cap_usd", "goes_on"), [(None, True), (1.0, True), (0.0045, False)])
def test_what_failed_attempts_cost_counts_against_the_budget_of_the_request(
    cap_usd: float | None, goes_on: bool
) -> None:
    # A call of `paid` is expected to cost 0.004 USD, and the one that broke has cost 0.0028.
    item = work(at=PAID, fallbacks=(target("paid", "b"),)).model_copy(update={"max_cost_usd": cap_usd})
    partial = Usage(tokens_in=1000, tokens_out=100, estimated=True)
    policy = small(
        models={
            **POLICY.model_dump()["models"],
            "paid": {**POLICY.models["paid"].model_dump(), "nodes": ["cloud", "b"]},
        }
    )
    broken = ended(item, FailureKind.SILENCE).model_copy(update={"partial": partial})
    assert (settled(broken, policy=policy).retry is not None) == goes_on


def test_a_chain_of_a_failure_is_followed_after_that_failure_only() -> None:
    larger = PAID.model_copy(update={"only_after": FailureKind.CONTEXT_TOO_LONG})
    item = work(fallbacks=(BIG_B, larger))
    assert next_of(settled(ended(item, FailureKind.CONTEXT_TOO_LONG))) == ("paid", "cloud", "next_target")
    assert next_of(settled(ended(item, FailureKind.SILENCE))) == NEXT
    assert error_of(run(item, FailureKind.SILENCE, FailureKind.SILENCE)) is ErrorType.ALL_TARGETS_FAILED


def test_silence_never_gets_the_same_target_again() -> None:
    assert next_of(run(work(), FailureKind.SERVER_ERROR, FailureKind.SILENCE)) == NEXT
