"""Each attempt is booked once, answers apart from what failed, and what is not known is never 0."""

import random
from collections import Counter
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.ledger import By, Entry, Event, Ledger, Row, rows, unknown
from schemas.decision import Decided, Decision, Refuse
from schemas.event import AttemptEnded, AttemptStarted, Replied
from schemas.failure import ErrorType, Failure, FailureKind
from schemas.policy import Policy, Price
from schemas.reply import Status
from schemas.work import AttemptRecord, Target, Unpriced, Usage
from schemas.world import World
from tests.support.decisions import small

POLICY = small()
NOW_MS = 1_795_240_800_000  # 2026-11-21T06:00:00Z
USAGE = Usage(tokens_in=1000, tokens_out=100, cached_tokens_in=40)
PAID_USD = Decimal("0.0028")
BROKE = Failure(kind=FailureKind.INTERRUPTED, message="끊겼다")


def decided(rid: str = "r1", agent: str | None = "npc-ai", seq: int = 1, at_ms: int = NOW_MS) -> Decided:
    return Decided(
        client="game", rid=rid, request_hash="0" * 64, request_seq=seq, capability="chat", agent=agent,
        world=World(as_of_ms=at_ms, received_ms=at_ms, request_seq=seq, policy=1, nodes={}),
        decision=Decision(choice=Refuse(error=ErrorType.NO_ROUTE, message="-"), stage="admit", task="plan"),
    )  # fmt: skip


def record(
    name: str = "1.1", cost: Decimal | None = PAID_USD, model: str = "paid", usage: Usage | None = USAGE,
    provider: str = "p", failure: Failure | None = None, why: Unpriced | None = None, total_ms: float = 100,
) -> AttemptRecord:  # fmt: skip
    return AttemptRecord(
        attempt_id=name, node="cloud", model=model, provider=provider, failure=failure, usage=usage, cost_usd=cost,
        unpriced=why, total_ms=total_ms,
    )  # fmt: skip


def started(name: str = "1.1", model: str = "paid", provider: str = "p", rid: str = "r1") -> AttemptStarted:
    target = Target(node="cloud", model=model, backend="b", provider="p")
    return AttemptStarted(
        client="game", rid=rid, attempt_id=name, target=target, provider=provider, started_ms=NOW_MS
    )  # fmt: skip


def ended(attempt: AttemptRecord, rid: str = "r1") -> AttemptEnded:
    return AttemptEnded(client="game", rid=rid, attempt=attempt, booking="wasted", why="next_target")


def replied(attempt: AttemptRecord | None, status: Status = "ok", rid: str = "r1") -> Replied:
    return Replied(client="game", rid=rid, request_hash="0" * 64, status=status, attempt=attempt, total_ms=500)


def booked(*events: Event, reprice: Policy | None = None) -> list[Entry]:
    ledger = Ledger(reprice or POLICY, reprice=reprice is not None)
    for event in events:
        ledger.add(event)
    return list(ledger.entries())


def total(entries: list[Entry]) -> Row:
    return sum(map(Row.of, entries), Row())


def test_the_answer_is_billed_and_what_failed_before_it_is_wasted() -> None:
    failed, answer = record("1.1", Decimal("0.001"), "big", failure=BROKE), record("2.1")
    entries = booked(decided(), started(), ended(failed), started("2.1"), replied(answer))
    assert total(entries) == Row(
        requests=1, attempts=2, tokens_in=2000, cached_tokens_in=80, tokens_out=200, billed_usd=PAID_USD,
        wasted_usd=Decimal("0.001"),
    )  # fmt: skip
    assert rows(entries, "model") == {
        "big": Row(attempts=1, tokens_in=1000, cached_tokens_in=40, tokens_out=100, wasted_usd=Decimal("0.001")),
        "paid": Row(
            requests=1, attempts=1, tokens_in=1000, cached_tokens_in=40, tokens_out=100, billed_usd=PAID_USD
        ),
    }  # fmt: skip


@pytest.mark.parametrize("status", ["error", "cancelled"])
def test_an_attempt_that_ended_a_request_without_an_answer_is_wasted(status: Status) -> None:
    found = total(booked(decided(), started(), replied(record(failure=BROKE), status)))
    assert (found.billed_usd, found.wasted_usd, found.requests) == (Decimal(0), PAID_USD, 1)


def test_the_last_record_of_a_reply_counts_and_the_answer_that_lost_is_wasted() -> None:
    lost, won = record("1.1", Decimal("0.5")), record("1.2", Decimal("0.25"))
    first_record = booked(decided(), replied(lost), replied(won))
    superseded = booked(decided(), replied(lost), replied(won), ended(lost))
    assert first_record == superseded
    assert (total(superseded).billed_usd, total(superseded).wasted_usd) == (Decimal("0.25"), Decimal("0.5"))


def test_a_request_that_was_refused_counts_and_costs_nothing() -> None:
    entries = booked(decided(), replied(None, "error"))
    assert total(entries) == Row(requests=1)
    assert rows(entries, "model") == {None: Row(requests=1)}
    assert rows(entries, "task") == {"plan": Row(requests=1)}


def test_a_request_that_ran_out_of_time_keeps_what_its_attempts_cost() -> None:
    entries = booked(decided(), ended(record(failure=BROKE)), replied(None, "error"))
    assert (total(entries).requests, total(entries).wasted_usd) == (1, PAID_USD)


@pytest.mark.parametrize(
    ("model", "provider", "lost"), [("paid", "p", 1), ("gone", "p", 1), ("big", "p", 0), ("paid", "loopback", 0)]
)
def test_what_was_killed_is_unknown_unless_it_can_have_cost_nothing(model: str, provider: str, lost: int) -> None:
    found = total(booked(decided(), started("1.1", model, provider), started("1.2"), replied(record("1.2"))))
    assert (found.attempts, found.wasted_unknown, found.wasted_usd, found.billed_usd) == (2, lost, Decimal(0), PAID_USD)


def test_what_still_runs_is_not_booked_yet() -> None:
    assert total(booked(decided(), started())) == Row(requests=1)


def test_what_is_not_known_is_counted_with_its_reason() -> None:
    entries = booked(
        decided(), ended(record("1.1", None, usage=None, why="no_usage", failure=BROKE)),
        replied(record("2.1", None, "gone", why="no_price")),
    )  # fmt: skip
    found = total(entries)
    assert (found.billed_usd + found.wasted_usd, found.billed_unknown, found.wasted_unknown) == (Decimal(0), 1, 1)
    assert unknown(entries) == {("no_usage", "paid"): 1, ("no_price", "gone"): 1}


def test_records_from_before_reasons_were_kept_have_theirs_told_from_the_usage() -> None:
    assert unknown(booked(decided(), replied(record(cost=None)))) == {("no_price", "paid"): 1}
    assert unknown(booked(decided(), replied(record(cost=None, usage=None)))) == {("no_usage", "paid"): 1}


def test_an_id_that_was_used_again_is_another_request() -> None:
    first, second = record("1.1", Decimal("0.5")), record("1.1", Decimal("0.25"))
    entries = booked(decided(), replied(first), decided(seq=9, agent="dm"), replied(second))
    assert {key: row.billed_usd for key, row in rows(entries, "agent").items()} == {
        "npc-ai": Decimal("0.5"), "dm": Decimal("0.25"),
    }  # fmt: skip


def test_only_wanted_requests_count() -> None:
    ledger = Ledger(POLICY, wanted=lambda event: event.agent == "dm")
    for event in (decided(), replied(record()), decided(seq=9, agent="dm"), replied(record())):
        ledger.add(event)
    ledger.add(decided(seq=10, agent="npc-ai"))
    ledger.add(ended(record("7.1")))
    assert total(list(ledger.entries())).billed_usd == PAID_USD


def test_a_day_is_one_of_utc() -> None:
    late = decided("r2", at_ms=NOW_MS + 18 * 3_600_000)
    assert rows(booked(decided(), late), "day").keys() == {"2026-11-21", "2026-11-22"}


def dearer(factor: int = 10) -> Policy:
    def changed(price: Price | None) -> Price | None:
        usd = price and price.output_usd_per_mtok * factor
        return Price(input_usd_per_mtok=usd, output_usd_per_mtok=usd, source="목록, 2027-01-01") if usd else price

    models = {name: model.model_copy(update={"price": changed(model.price)}) for name, model in POLICY.models.items()}
    return POLICY.model_copy(update={"models": models})


def test_an_old_day_may_be_priced_anew() -> None:
    events = decided(), ended(record("1.1", None, why="no_price", failure=BROKE)), replied(record("2.1"))
    found = booked(*events, reprice=dearer())
    assert (total(found).billed_usd, total(found).wasted_usd) == (Decimal("0.088"), Decimal("0.088"))
    assert not unknown(found)
    assert {entry.attempt and entry.attempt.prices for entry in found} == {"목록, 2027-01-01"}
    assert total(booked(*events)).billed_usd == PAID_USD


@pytest.mark.parametrize(
    ("attempt", "cost"),
    [
        (record(cost=Decimal(0), provider="loopback"), Decimal(0)),
        (record(cost=Decimal(0), usage=None, failure=BROKE), Decimal(0)),
        (record(cost=None, usage=None), None),
        (record(model="gone"), None),
        (record(cost=None, model="big"), Decimal(0)),
    ],
)
def test_only_what_a_model_did_is_priced_anew(attempt: AttemptRecord, cost: Decimal | None) -> None:
    (entry,) = booked(decided(), replied(attempt), reprice=dearer())
    assert entry.attempt is not None
    assert entry.attempt.cost_usd == cost
    assert (entry.unknown is None) == (cost is not None)


COSTS = st.none() | st.decimals(0, 100, places=9)
USAGES = st.none() | st.builds(Usage, tokens_in=st.integers(0, 10**6), tokens_out=st.integers(0, 10**6))


@st.composite
def lives(draw: st.DrawFn) -> list[Event]:
    """One request's events, in an order that its stream may have."""
    rid = f"r{draw(st.integers(0, 10**9))}"
    events: list[Event] = [
        decided(rid, draw(st.sampled_from(["npc-ai", "dm", None])), at_ms=draw(st.integers(0, 10**12)))
    ]
    for attempt in range(draw(st.integers(0, 3))):
        model = draw(st.sampled_from(["big", "paid", "gone"]))
        one = record(f"{attempt}.1", draw(COSTS), model, draw(USAGES), draw(st.sampled_from(["p", "loopback"])))
        if draw(st.booleans()):
            events.append(started(one.attempt_id, model, one.provider, rid))
        events.extend(draw(st.sampled_from([[], [ended(one, rid)], [replied(one, "ok", rid)]])))
    if draw(st.booleans()):
        events.append(replied(None, "error", rid))
    return events


@given(st.lists(lives(), max_size=6, unique_by=lambda life: life[0].rid), st.randoms(use_true_random=False))
def test_doubled_and_interleaved_events_change_nothing(found: list[list[Event]], chance: random.Random) -> None:
    plain = booked(*(event for life in found for event in life))
    mixed: list[Event] = []
    sent: list[Event] = []
    queues = [list(life) for life in found]
    while queues := [queue for queue in queues if queue]:
        event = chance.choice(queues).pop(0)
        mixed.extend([event] * chance.randint(1, 2))
        if not isinstance(event, Replied):
            sent.append(event)
        if sent and chance.random() < 0.5:
            mixed.append(chance.choice(sent))  # sent again, long after
    assert Counter(map(repr, booked(*mixed))) == Counter(map(repr, plain))


@given(st.lists(lives(), max_size=6, unique_by=lambda life: life[0].rid))
def test_every_grouping_has_the_same_sum(found: list[list[Event]]) -> None:
    entries = booked(*(event for life in found for event in life))
    sums = [sum(rows(entries, by).values(), Row()) for by in get_args(By)]
    assert all(each == total(entries) for each in sums)
    assert total(entries).requests == len(found)
    lacking = sum(unknown(entries).values())
    assert lacking == total(entries).billed_unknown + total(entries).wasted_unknown
