"""Each failure has one consequence, all is bounded, every attempt is told and booked, costs are never invented."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.next_step import MAX_CALLS
from router.core.settle import settle, unanswered
from schemas.failure import ErrorType, FailureKind
from schemas.outcome import Answer, Outcome
from schemas.work import AttemptRecord, Target, Usage, WorkItem
from schemas.world import NodeView, World
from tests.support.attempts import (
    AGAIN,
    BIG_A,
    BIG_B,
    NEXT,
    PAID,
    PAID_USD,
    POLICY,
    TINY_B,
    USAGE,
    ended,
    error_of,
    next_of,
    run,
    settled,
    target,
    work,
)
from tests.support.decisions import NOW, small, world

CONSEQUENCES: dict[FailureKind, tuple[str, str, str] | ErrorType] = {
    FailureKind.BAD_REQUEST: ErrorType.BAD_REQUEST,
    FailureKind.CONTENT_POLICY: ErrorType.UPSTREAM_ERROR,
    FailureKind.CONTEXT_TOO_LONG: ("paid", "cloud", "next_target"),
    FailureKind.AUTH: NEXT,
    FailureKind.RATE_LIMITED: NEXT,
    FailureKind.SERVER_ERROR: AGAIN,
    FailureKind.CONNECTION: AGAIN,
    FailureKind.SILENCE: NEXT,
    FailureKind.INTERRUPTED: NEXT,
    FailureKind.MALFORMED: NEXT,
    FailureKind.TOO_LARGE: ErrorType.PAYLOAD_TOO_LARGE,
    FailureKind.INSUFFICIENT_MEMORY: NEXT,
    FailureKind.BREAKER_OPEN: NEXT,
    FailureKind.UNSUPPORTED: NEXT,
    FailureKind.UNUSABLE: NEXT,
    FailureKind.NODE_LOST: NEXT,
    FailureKind.DEADLINE: ErrorType.DEADLINE_EXCEEDED,
    FailureKind.CANCELLED: ErrorType.CANCELLED,
    FailureKind.POISON: ErrorType.POISON,
    FailureKind.INTERNAL: NEXT,
}


@pytest.mark.parametrize("kind", FailureKind)
def test_every_failure_has_its_consequence(kind: FailureKind) -> None:
    expected = CONSEQUENCES[kind]
    result = settled(ended(work(), kind))
    if isinstance(expected, ErrorType):
        assert error_of(result) is expected
    else:
        assert next_of(result) == expected


ALONE = {
    FailureKind.RATE_LIMITED: ErrorType.UPSTREAM_RATE_LIMITED,
    FailureKind.SILENCE: ErrorType.UPSTREAM_TIMEOUT,
    FailureKind.INTERNAL: ErrorType.INTERNAL,
    FailureKind.AUTH: ErrorType.UPSTREAM_ERROR,
    FailureKind.UNUSABLE: ErrorType.UPSTREAM_ERROR,
    FailureKind.UNSUPPORTED: ErrorType.BAD_REQUEST,
    FailureKind.INSUFFICIENT_MEMORY: ErrorType.UPSTREAM_ERROR,
    FailureKind.CONTEXT_TOO_LONG: ErrorType.BAD_REQUEST,
}


@pytest.mark.parametrize(("kind", "told"), ALONE.items())
def test_a_single_attempt_without_a_successor_is_told_as_what_it_was(kind: FailureKind, told: ErrorType) -> None:
    assert error_of(settled(ended(work(fallbacks=()), kind))) is told


def test_a_retry_carries_all_that_settles_it() -> None:
    item = work()
    retry = settled(ended(item, FailureKind.SILENCE)).retry
    assert retry is not None
    assert (retry.attempt, retry.sent_ms, retry.fallbacks) == (2, NOW + 500, (TINY_B, PAID))
    assert [a.failure and a.failure.kind for a in retry.priors] == [FailureKind.SILENCE]
    same = (
        "client",
        "rid",
        "request_hash",
        "request_seq",
        "chat",
        "received_ms",
        "deadline_at_ms",
        "policy",
        "decision",
    )
    assert all(getattr(retry, name) == getattr(item, name) for name in same)


def test_a_larger_context_is_looked_for_and_a_smaller_one_is_not() -> None:
    assert (
        error_of(settled(ended(work(fallbacks=(BIG_B, TINY_B)), FailureKind.CONTEXT_TOO_LONG))) is ErrorType.BAD_REQUEST
    )


def test_what_is_beyond_all_targets_is_the_requests_own_fault_and_names_each() -> None:
    for kinds in [(FailureKind.UNSUPPORTED,) * 3, (FailureKind.CONTEXT_TOO_LONG, FailureKind.UNSUPPORTED)]:
        reply = run(work(), *kinds).reply
        assert reply is not None
        assert reply.error is not None
        assert (reply.error.type, reply.error.retryable) == (ErrorType.BAD_REQUEST, False)
        assert all(
            f"{a.model}@{a.node} {kind.value}" in reply.error.message
            for a, kind in zip(reply.attempts, kinds, strict=True)
        )
    for kinds in [(FailureKind.UNSUPPORTED, FailureKind.UNUSABLE), (FailureKind.AUTH, FailureKind.UNSUPPORTED)]:
        assert error_of(run(work(fallbacks=(BIG_B,)), *kinds)) is ErrorType.ALL_TARGETS_FAILED


def test_who_was_not_asked_might_have_done_it() -> None:
    gone = world(POLICY, as_of_ms=NOW + 500, b=None)
    result = settled(ended(work(fallbacks=(BIG_B,)), FailureKind.UNSUPPORTED), gone)
    assert error_of(result) is ErrorType.UPSTREAM_ERROR


@pytest.mark.parametrize(
    "view", [None, NodeView(heard_ms=NOW, draining=True, models={}), NodeView(heard_ms=NOW - 9_000, models={})]
)
def test_a_fallback_that_cannot_take_it_now_is_stepped_over(view: NodeView | None) -> None:
    seen = world(POLICY, as_of_ms=NOW + 500, b=view)
    assert next_of(settled(ended(work(), FailureKind.SILENCE), seen)) == ("paid", "cloud", "next_target")


def test_every_attempt_is_listed_when_all_targets_failed() -> None:
    result = run(work(), FailureKind.SILENCE, FailureKind.MALFORMED, FailureKind.AUTH)
    assert error_of(result) is ErrorType.ALL_TARGETS_FAILED
    assert result.reply is not None
    assert [(a.model, a.node) for a in result.reply.attempts] == [("big", "a"), ("big", "b"), ("tiny", "b")]
    assert result.reply.error is not None
    for told in ("big@a silence: it broke", "big@b malformed: it broke", "tiny@b auth: it broke"):
        assert told in result.reply.error.message


@given(
    st.lists(
        st.sampled_from([k for k, then in CONSEQUENCES.items() if not isinstance(then, ErrorType)]),
        min_size=30,
        max_size=30,
    ),
    st.integers(1, 6),
)
def test_no_series_of_failures_goes_on_for_ever(kinds: list[FailureKind], max_attempts: int) -> None:
    policy = small(limits={"max_attempts": max_attempts})
    item = work()
    for at, kind in enumerate(kinds):
        seen = world(policy, as_of_ms=NOW + 2_000 * (at + 1), received_ms=NOW)
        result = settled(ended(item, kind), seen, policy)
        if result.retry is None:
            break
        item = result.retry
    assert result.reply is not None
    assert len(result.reply.attempts) <= MAX_CALLS
    called = {(a.node, a.model) for a in result.reply.attempts}
    assert len(called) <= max_attempts
    ends = [(a.node, a.model) for a in result.reply.attempts]
    assert all(ends.count(each) <= 2 for each in called)


@pytest.mark.parametrize("kind", [FailureKind.SERVER_ERROR, FailureKind.SILENCE, FailureKind.RATE_LIMITED])
def test_nothing_is_started_after_the_deadline(kind: FailureKind) -> None:
    late = world(POLICY, as_of_ms=NOW + 60_000, received_ms=NOW)
    result = settled(ended(work(), kind), late)
    assert error_of(result) is ErrorType.DEADLINE_EXCEEDED


@pytest.mark.parametrize("kind", [FailureKind.BAD_REQUEST, FailureKind.CONTENT_POLICY, FailureKind.RATE_LIMITED])
def test_the_upstreams_own_words_pass_through(kind: FailureKind) -> None:
    result = settled(
        ended(work(fallbacks=()), kind, upstream="이 요청은 거절되었습니다", status=400, retry_after_ms=77_000)
    )
    assert result.reply is not None
    assert result.reply.error is not None
    assert "이 요청은 거절되었습니다" in result.reply.error.message
    assert result.reply.error.retry_after_ms == 77_000


def test_an_answer_is_the_reply_with_all_its_facts() -> None:
    item = work(at=PAID)
    answer = Answer(
        text="안녕하세요", finish_reason="length", stop_sequence="끝", usage=USAGE, tool_calls=({"id": "1"},),
        reasoning="음",
    )  # fmt: skip
    result = settled(ended(item, answer))
    reply = result.reply
    assert reply is not None
    assert (result.booking, result.why, reply.status, reply.finish_reason) == ("billed", "answered", "ok", "length")
    assert reply.stop_sequence == "끝"
    assert reply.message is not None
    assert (reply.message.content, reply.message.reasoning, reply.message.tool_calls) == (
        "안녕하세요",
        "음",
        ({"id": "1"},),
    )
    assert (reply.model, reply.node, reply.provider, reply.agent_role) == ("paid", "cloud", "p", "coder")
    assert (reply.timings.queue_ms, reply.timings.first_token_ms, reply.timings.generation_ms) == (3, 20, 100)
    assert (reply.timings.total_ms, reply.usage, reply.cost_usd, reply.notice) == (500, USAGE, PAID_USD, None)
    assert reply.attempts == (result.record,)


@pytest.mark.parametrize("priors_usd", [["0"], ["0.001", "0.002"], ["0.001", None]])
def test_what_failed_attempts_cost_is_booked_apart_from_the_answer(priors_usd: list[str | None]) -> None:
    priors = tuple(
        AttemptRecord(
            attempt_id=f"{n}.1", node="a", model="big", provider="p", cost_usd=None if usd is None else Decimal(usd)
        )
        for n, usd in enumerate(priors_usd, 1)
    )
    reply = settled(ended(work(at=PAID, priors=priors), Answer(usage=USAGE))).reply
    assert reply is not None
    assert reply.cost_usd == PAID_USD
    assert reply.wasted_usd == (sum(Decimal(usd) for usd in priors_usd if usd is not None) or None)


@pytest.mark.parametrize(("item", "usage"), [(work(at=PAID), None), (work(at=target("gone", "a")), USAGE)])
def test_a_cost_that_cannot_be_known_is_absent(item: WorkItem, usage: Usage | None) -> None:
    reply = settled(ended(item, Answer(text="x", usage=usage))).reply
    assert reply is not None
    assert reply.cost_usd is None


def test_a_stand_in_costs_nothing_and_says_that_it_is_no_model() -> None:
    result = settled(ended(work(at=PAID), Answer(text="x", usage=USAGE), stand_in=True))
    assert result.reply is not None
    assert result.reply.cost_usd == Decimal(0)
    assert result.reply.provider == "loopback"
    assert result.reply.notice is not None
    assert "no model answered" in result.reply.notice


@pytest.mark.parametrize(
    ("kind", "booking", "cost", "spent"),
    [
        (FailureKind.CONNECTION, "wasted", 0, "no"),
        (FailureKind.RATE_LIMITED, "wasted", 0, "no"),
        (FailureKind.BAD_REQUEST, "wasted", 0, "no"),
        (FailureKind.INTERRUPTED, "unknown", None, "unknown"),
        (FailureKind.SILENCE, "unknown", None, "unknown"),
        (FailureKind.SERVER_ERROR, "wasted", 0, "no"),
        (FailureKind.CANCELLED, "unknown", None, "unknown"),
    ],
)
def test_a_failed_attempt_is_booked_by_whether_it_can_have_cost(
    kind: FailureKind, booking: str, cost: int | None, spent: str
) -> None:
    result = settled(ended(work(at=PAID, fallbacks=()), kind))
    assert (result.booking, result.record.cost_usd) == (booking, cost)
    if result.reply is not None:
        assert result.reply.error is not None
        assert result.reply.error.spent == spent
        assert result.reply.cost_usd is None


def test_what_a_failed_attempt_used_by_estimate_is_wasted_and_never_in_the_cost_of_the_answer() -> None:
    partial = Usage(tokens_in=1000, tokens_out=100, estimated=True)
    broken = ended(work(at=PAID, fallbacks=(BIG_A,)), FailureKind.INTERRUPTED).model_copy(update={"partial": partial})
    result = settled(broken)
    assert (result.booking, result.record.cost_usd, result.record.usage) == ("wasted", PAID_USD, partial)
    assert result.retry is not None
    reply = settled(ended(result.retry, Answer(usage=USAGE))).reply
    assert reply is not None
    assert (reply.cost_usd, reply.wasted_usd) == (Decimal(0), PAID_USD)


@pytest.mark.parametrize(
    ("at", "usage", "kind", "cost", "why"),
    [
        (PAID, USAGE, FailureKind.INTERRUPTED, PAID_USD, None),
        (PAID, USAGE, FailureKind.CANCELLED, PAID_USD, None),
        (PAID, None, FailureKind.INTERRUPTED, None, "no_usage"),
        (BIG_A, None, FailureKind.INTERRUPTED, Decimal(0), None),
        (target("gone", "a"), USAGE, FailureKind.INTERRUPTED, None, "no_price"),
    ],
)
def test_what_a_failed_attempt_used_is_booked_with_it(
    at: Target, usage: Usage | None, kind: FailureKind, cost: Decimal | None, why: str | None
) -> None:
    record = settled(ended(work(at=at), kind).model_copy(update={"partial": usage})).record
    assert (record.usage, record.cost_usd, record.unpriced) == (usage, cost, why)


def test_the_record_names_the_prices_that_were_looked_up() -> None:
    source = "genai-prices 0.2.3, 2026-11-21"
    paid = POLICY.models["paid"]
    assert paid.price is not None
    price = paid.price.model_copy(update={"source": source})
    models = {**POLICY.models, "paid": paid.model_copy(update={"price": price})}
    policy = POLICY.model_copy(update={"models": models})
    assert settled(ended(work(at=PAID), Answer(usage=USAGE)), policy=policy).record.prices == source
    assert settled(ended(work(at=PAID), FailureKind.AUTH), policy=policy).record.prices is None
    assert settled(ended(work(at=PAID), Answer(usage=USAGE))).record.prices is None


def test_one_costly_attempt_makes_the_spending_unknown() -> None:
    result = run(work(at=PAID, fallbacks=(BIG_A, BIG_B)), FailureKind.INTERRUPTED, FailureKind.AUTH, FailureKind.AUTH)
    assert result.reply is not None
    assert result.reply.error is not None
    assert result.reply.error.spent == "unknown"


def test_an_outcome_without_answer_and_failure_is_an_internal_error() -> None:
    assert error_of(settled(ended(work(fallbacks=()), None))) is ErrorType.INTERNAL


def test_work_that_nobody_did_in_time_is_answered() -> None:
    late = world(POLICY, as_of_ms=NOW + 61_500, received_ms=NOW)
    reply = unanswered(ErrorType.DEADLINE_EXCEEDED, work(), late, "it waited for big on a")
    assert reply.error is not None
    assert (reply.error.type, reply.error.spent) == (ErrorType.DEADLINE_EXCEEDED, "unknown")
    assert "big on a" in reply.error.message
    assert reply.timings.total_ms == 61_500


@given(st.sampled_from(FailureKind), st.booleans(), st.integers(0, 70_000))
def test_the_same_outcome_is_settled_the_same_way(kind: FailureKind, stand_in: bool, late_ms: int) -> None:
    outcome = ended(work(), kind, stand_in=stand_in)
    seen = world(POLICY, as_of_ms=NOW + late_ms, received_ms=NOW)
    assert settle(Outcome.decode(outcome.encode()), World.decode(seen.encode()), POLICY) == settle(
        outcome, seen, POLICY
    )
