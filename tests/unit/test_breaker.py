"""A model that fails again and again is left alone, then asked once; and retries stay a share of the traffic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.breaker import ALIVE, AT_ONCE, COUNTED, Breaker
from router.retry_budget import FLOOR, WINDOW_S, RetryBudget
from schemas.failure import Failure, FailureKind

NOW = 1_000_000
OPEN_MS = 5_000


def breaker(failures: int = 5) -> Breaker:
    return Breaker(failures, OPEN_MS)


def fail(kind: FailureKind = FailureKind.SERVER_ERROR, retry_after_ms: int | None = None) -> Failure:
    return Failure(kind=kind, message="x", retry_after_ms=retry_after_ms)


def opened(at_ms: int = NOW) -> Breaker:
    made = breaker()
    assert made.ended("call", fail(FailureKind.SILENCE), at_ms)
    return made


@pytest.mark.parametrize("kind", sorted(COUNTED - AT_ONCE))
def test_so_many_failures_in_a_row_open_it(kind: FailureKind) -> None:
    made = breaker(5)
    for _ in range(4):
        assert made.permit(NOW) == "call"
        assert not made.ended("call", fail(kind), NOW)
    assert made.ended("call", fail(kind), NOW)
    assert (made.state, made.open_until_ms, made.last_failure) == ("open", NOW + OPEN_MS, kind)
    assert made.permit(NOW + OPEN_MS - 1) is None


@pytest.mark.parametrize("kind", sorted(AT_ONCE))
def test_silence_and_dead_keys_open_it_at_once(kind: FailureKind) -> None:
    made = breaker(5)
    assert made.ended("call", fail(kind), NOW)
    assert made.permit(NOW) is None


@pytest.mark.parametrize("between", [None, *sorted(ALIVE)])
def test_any_sign_of_life_starts_the_count_anew(between: FailureKind | None) -> None:
    made = breaker(2)
    for _ in range(3):
        made.ended("call", fail(), NOW)
        made.ended("call", fail(between) if between else None, NOW)
    assert made.state == "closed"


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - COUNTED - ALIVE))
def test_what_is_no_fault_of_the_model_neither_opens_nor_closes_it(kind: FailureKind) -> None:
    made = breaker(1)
    assert not made.ended("call", fail(kind), NOW)
    assert made.state == "closed"
    half = opened()
    assert half.permit(NOW + OPEN_MS) == "probe"
    half.ended("probe", fail(kind), NOW + OPEN_MS)
    assert half.permit(NOW + OPEN_MS) == "probe"  # nothing was found out: another one may


def test_half_open_it_lets_one_call_find_out() -> None:
    made = opened()
    assert made.permit(NOW + OPEN_MS) == "probe"
    assert made.state == "half_open"
    assert made.permit(NOW + OPEN_MS + 1) is None
    assert made.ended("probe", None, NOW + OPEN_MS + 50)
    assert (made.state, made.open_until_ms, made.last_failure) == ("closed", None, None)


def test_a_probe_that_fails_opens_it_again() -> None:
    made = opened()
    assert made.permit(NOW + OPEN_MS) == "probe"
    assert made.ended("probe", fail(), NOW + 6_000)
    assert made.open_until_ms == NOW + 6_000 + OPEN_MS
    assert made.permit(NOW + 6_000) is None


def test_reopening_keeps_the_later_end() -> None:
    made = opened()
    made.ended("call", fail(FailureKind.RATE_LIMITED, retry_after_ms=60_000), NOW + 10)
    assert made.open_until_ms == NOW + 60_010
    made.ended("call", fail(FailureKind.SILENCE), NOW + 20)
    assert made.open_until_ms == NOW + 60_010


def test_a_late_success_of_an_earlier_call_does_not_close_it() -> None:
    made = opened()
    made.ended("call", None, NOW + 100)
    assert made.state == "open"


def test_a_target_that_says_when_to_come_again_is_left_alone_until_then() -> None:
    made = breaker()
    assert made.ended("call", fail(FailureKind.RATE_LIMITED, retry_after_ms=2_000), NOW)
    assert made.permit(NOW + 1_999) is None
    assert made.permit(NOW + 2_000) == "probe"


def test_forced_it_lets_a_call_through_whatever_its_state() -> None:
    made = opened()
    assert made.permit(NOW, forced=True) == "probe"
    assert made.permit(NOW, forced=True) == "probe"


@given(st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from([None, *FailureKind])), max_size=60))
def test_while_it_is_open_no_call_and_when_half_open_one_at_a_time(steps: list[tuple[int, FailureKind | None]]) -> None:
    made, now_ms, probing = breaker(2), NOW, False
    for later_ms, kind in steps:
        now_ms += later_ms
        permit = made.permit(now_ms)
        if permit == "probe":
            assert not probing
            assert made.open_until_ms is not None
            assert now_ms >= made.open_until_ms
        elif permit is None:
            assert made.open_until_ms is not None
            continue
        made.ended(permit, fail(kind) if kind else None, now_ms)
        probing = made.state == "half_open"


def test_without_traffic_a_floor_of_retries_is_allowed() -> None:
    budget = RetryBudget()
    for left in range(FLOOR, 0, -1):
        assert budget.left(NOW) == left
        budget.retried(NOW)
    assert budget.left(NOW) == 0
    assert budget.left(NOW + WINDOW_S * 1000) == FLOOR


def test_retries_are_a_tenth_of_the_traffic_of_the_last_seconds() -> None:
    budget = RetryBudget()
    for at in range(1_000):
        budget.requested(NOW + at)
    assert budget.left(NOW + 1_000) == 100
    for _ in range(100):
        budget.retried(NOW + 1_000)
    assert budget.left(NOW + 1_000) == 0
    assert budget.left(NOW + 1_000 + WINDOW_S * 1000) == FLOOR
