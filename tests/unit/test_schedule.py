"""What a node does next: one rule, one example. A load takes 5 s for every 10 GB; times in ms."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from router.core.orders import Load, Orders, Refusal, Start, Unload, Wait
from router.core.residency import BOUNDS_MS, GB, ModelSpec, NodeState, Rules, spec_of
from router.core.schedule import schedule
from router.core.waiting import Job, Line
from schemas.policy import Model
from subjects.grammar import URGENCIES, Urgency

ARCHITECT = ModelSpec("architect", 52 * GB, 25)
CODER = ModelSpec("coder", 19 * GB, 30)
REVIEWER = ModelSpec("reviewer", 9 * GB, 40, slots=2)
JUDGE = ModelSpec("judge", 6 * GB, 35, slots=4, pinned=True)
FAR_MS = 10**9


class Bench:
    """A node of 64 GB and the time."""

    def __init__(self, *specs: ModelSpec, total_gb: float = 64, rules: Rules | None = None) -> None:
        self.node = NodeState(specs or (ARCHITECT, CODER, REVIEWER), round(total_gb * GB), rules=rules)
        self.now_ms = 0
        self._ticket = 0

    def ask(self, model: str, urgency: Urgency = "normal", *, tokens: int = 300, timeout_ms: int = FAR_MS) -> int:
        self._ticket += 1
        deadline_ms = self.now_ms + timeout_ms
        job = Job(self._ticket, model, urgency, self.now_ms, deadline_ms, tokens)
        assert self.node.arrived(job, self.now_ms)
        return self._ticket

    def hold(self, *models: str) -> None:
        for model in models:
            self.node.loaded(model, self.now_ms)
            self.node.models[model].fresh = False

    def run(self, model: str, urgency: Urgency = "normal", *, tokens: int = 300) -> int:
        ticket = self.ask(model, urgency, tokens=tokens)
        self.node.started(ticket, self.now_ms)
        return ticket

    def at(self, now_ms: int) -> Orders:
        self.now_ms = now_ms
        return self.orders

    @property
    def orders(self) -> Orders:
        return schedule(self.node, self.now_ms)


def waits(orders: Orders) -> dict[str, str]:
    return {wait.model: wait.reason for wait in orders.waits}


def started(bench: Bench) -> list[int]:
    return [start.ticket for start in bench.orders.starts]


def test_an_empty_node_has_nothing_to_do() -> None:
    assert Bench().orders == Orders()


def test_what_is_in_memory_serves_the_most_urgent_then_the_oldest() -> None:
    bench = Bench()
    bench.hold("coder")
    tickets = [bench.ask("coder", urgency) for urgency in ("batch", "normal", "normal", "critical", "high")]
    served: list[int] = []
    for _ in tickets:
        start = bench.orders.starts[0]
        assert start.reason == "resident"
        bench.node.started(start.ticket, bench.now_ms)
        bench.node.finished(start.ticket, bench.now_ms)
        served.append(start.ticket)
    assert served == [tickets[3], tickets[4], tickets[1], tickets[2], tickets[0]]


def test_a_model_serves_as_many_as_it_has_slots() -> None:
    bench = Bench()
    bench.hold("reviewer")
    first, second, third = (bench.ask("reviewer") for _ in range(3))
    assert started(bench) == [first, second]
    bench.node.started(first, 0)
    assert started(bench) == [second]
    bench.node.started(second, 0)
    assert started(bench) == []
    bench.node.finished(first, 0)
    assert started(bench) == [third]


def test_what_fits_is_loaded_while_others_generate() -> None:
    bench = Bench()
    bench.hold("coder")
    bench.run("coder")
    bench.ask("reviewer")
    assert bench.orders.load == Load("reviewer", "room")
    assert bench.orders.unloads == ()


def test_the_idle_go_for_what_is_wanted_and_it_comes_when_they_are_gone() -> None:
    bench = Bench()
    bench.hold("coder", "reviewer")
    bench.ask("architect")
    assert bench.orders.unloads == (Unload("coder", "idle", "architect"), Unload("reviewer", "idle", "architect"))
    assert bench.orders.load is None
    bench.node.unload_began("coder")
    bench.node.unload_began("reviewer")
    bench.node.unloaded("coder")
    assert not bench.orders.acts
    bench.node.unloaded("reviewer")
    assert bench.orders.load == Load("architect", "room")


def test_they_go_for_the_one_that_wanted_the_room_and_not_for_another() -> None:
    bench = Bench()
    bench.hold("coder")
    bench.ask("architect")
    assert bench.orders.unloads == (Unload("coder", "idle", "architect"),)
    bench.node.unload_began("coder", "architect")
    bench.ask("coder", "critical")
    bench.node.unloaded("coder")
    assert bench.orders.load == Load("architect", "room")


def test_no_more_go_than_must_and_the_least_used_first() -> None:
    small = [ModelSpec(f"m{at}", 15 * GB, 30) for at in range(5)]
    bench = Bench(*small)
    bench.hold("m0", "m1", "m2", "m3")
    for at, model in enumerate(("m2", "m0", "m3", "m1")):
        bench.now_ms = at
        bench.node.finished(bench.run(model), at)
    bench.ask("m4")
    assert bench.orders.unloads == (Unload("m2", "idle", "m4"),)


def test_the_same_model_is_served_on_while_another_waits_within_its_bound() -> None:
    bench = Bench()
    bench.hold("architect")
    bench.ask("coder")
    first = bench.ask("architect")
    orders = bench.at(1_000)
    assert orders.starts == (Start(first, "architect", "before_swap"),)
    assert waits(orders) == {"coder": "collating"}
    assert not orders.unloads
    assert orders.ask_at_ms == 90_000


def test_nothing_is_started_that_would_outlast_anothers_bound() -> None:
    """A younger request of 12 s: it may start until 12 s before the other's bound."""
    bench = Bench()
    bench.hold("architect")
    bench.ask("coder")
    bench.now_ms = 10_000
    younger = bench.ask("architect", tokens=300)
    assert [start.ticket for start in bench.at(77_999).starts] == [younger]
    orders = bench.at(78_000)
    assert orders.starts == ()
    assert orders.unloads == (Unload("architect", "bound", "coder"),)


def test_what_generates_is_not_unloaded_but_gets_nothing_more() -> None:
    bench = Bench()
    bench.hold("architect")
    bench.ask("coder")
    bench.now_ms = 10_000
    running = bench.run("architect", tokens=5_000)
    bench.ask("architect")
    orders = bench.at(95_000)
    assert not orders.acts
    assert waits(orders) == {"coder": "making_room"}
    bench.node.finished(running, 95_000)
    assert bench.orders.unloads == (Unload("architect", "bound", "coder"),)


def test_when_all_are_overdue_the_turn_goes_on_with_those_who_were_there_when_it_began() -> None:
    bench = Bench()
    old = bench.ask("architect")
    bench.ask("coder")
    bench.now_ms = 1_000
    bench.hold("architect")
    bench.now_ms = 2_000
    bench.ask("architect")
    orders = bench.at(200_000)
    assert orders.starts == (Start(old, "architect", "before_swap"),)
    bench.node.started(old, 200_000)
    bench.node.finished(old, 200_000)
    assert bench.orders.unloads == (Unload("architect", "bound", "coder"),)


def test_batch_yields_to_everybody_within_one_request() -> None:
    bench = Bench()
    bench.hold("architect")
    running = bench.run("architect", "batch")
    bench.ask("architect", "batch")
    assert bench.at(1_000).starts == ()
    bench.ask("coder", "normal")
    assert waits(bench.orders) == {"coder": "making_room"}
    bench.node.finished(running, 2_000)
    orders = bench.at(2_000)
    assert orders.starts == ()
    assert orders.unloads == (Unload("architect", "batch_yields", "coder"),)


def test_batch_does_not_yield_to_batch() -> None:
    bench = Bench()
    bench.hold("architect")
    mine = bench.ask("architect", "batch")
    bench.ask("coder", "batch")
    assert started(bench) == [mine]


def test_batch_waits_a_moment_for_the_next_word_of_a_conversation() -> None:
    """As long as both loads would take: 9.5 s and 26 s."""
    bench = Bench()
    bench.hold("coder")
    bench.node.finished(bench.run("coder", "high"), 0)
    bench.ask("architect", "batch")
    assert waits(bench.orders) == {"architect": "lingering"}
    assert bench.orders.ask_at_ms == 35_500
    assert bench.at(35_499).unloads == ()
    assert bench.at(35_500).unloads == (Unload("coder", "idle", "architect"),)


def test_batch_that_is_past_its_bound_gets_its_turn_from_a_busy_model() -> None:
    bench = Bench()
    bench.hold("coder")
    bench.ask("architect", "batch")
    bench.now_ms = BOUNDS_MS["batch"] + 1
    bench.ask("coder")
    assert bench.orders.unloads == (Unload("coder", "bound", "architect"),)


def test_a_deadline_brings_its_model_before_its_bound() -> None:
    """30 s left, of which the load takes 9.5 s and 300 tokens 10 s: the load begins after 10.5 s at the latest."""
    bench = Bench()
    bench.hold("architect")
    bench.ask("coder", timeout_ms=30_000)
    bench.now_ms = 1
    bench.ask("architect", tokens=25)
    assert bench.at(9_499).starts != ()
    orders = bench.at(9_500)
    assert orders.starts == ()
    assert orders.unloads == (Unload("architect", "deadline", "coder"),)


def test_a_deadline_that_no_load_could_meet_hurries_nobody() -> None:
    bench = Bench()
    bench.hold("architect")
    bench.ask("coder", timeout_ms=15_000)
    ticket = bench.ask("architect")
    assert [start.ticket for start in bench.at(1_000).starts] == [ticket]


def test_what_is_past_its_deadline_is_refused() -> None:
    bench = Bench()
    bench.hold("coder")
    bench.run("coder")
    late, in_time = bench.ask("coder", timeout_ms=5_000), bench.ask("coder", timeout_ms=60_000)
    assert bench.orders.ask_at_ms == 5_000
    assert bench.at(5_000).refusals == (Refusal(late, "deadline"),)
    assert bench.node.withdrawn(late)
    assert bench.orders.refusals == ()
    assert in_time in bench.node.queue


def test_what_can_never_fit_is_refused_with_the_figures() -> None:
    bench = Bench(replace(ARCHITECT, weights_bytes=60 * GB), CODER)
    ticket = bench.ask("architect")
    assert bench.orders.refusals == (Refusal(ticket, "insufficient_memory", 65 * GB, 64 * GB),)


def test_what_fits_alone_may_not_fit_beside_the_pinned() -> None:
    bench = Bench(ARCHITECT, JUDGE, total_gb=60)
    ticket = bench.ask("architect")
    assert bench.orders.refusals == (Refusal(ticket, "insufficient_memory", 57 * GB, 54 * GB),)


@pytest.mark.parametrize(
    ("weights_gb", "total_gb", "fits"),
    [(52, 57, True), (52, 56.9, False), (30, 57, True), (19, 28, True), (19, 20.9, False)],
)
def test_five_gb_stay_free_beside_a_giant_and_two_beside_others(
    weights_gb: int, total_gb: float, *, fits: bool
) -> None:
    bench = Bench(ModelSpec("one", weights_gb * GB, 30), total_gb=total_gb)
    bench.ask("one")
    assert (bench.orders.load == Load("one", "room")) is fits
    assert bool(bench.orders.refusals) is not fits


def test_memory_that_other_programs_took_is_not_loaded_into() -> None:
    bench = Bench()
    ticket = bench.ask("architect")
    bench.node.measured(30 * GB)
    orders = bench.orders
    assert orders.waits == (Wait("architect", "memory_taken", 57 * GB, 30 * GB),)
    assert not orders.acts
    bench.node.measured(60 * GB)
    assert bench.orders.load == Load("architect", "room")
    assert ticket in bench.node.queue


def test_memory_is_weights_and_context_of_every_slot_and_what_was_measured() -> None:
    bench = Bench(replace(REVIEWER, context_tokens=32_000, kv_bytes_per_token=100_000))
    model = bench.node.models["reviewer"]
    assert model.memory_bytes == 9 * GB + 2 * 32_000 * 100_000
    assert model.load_ms == 4_500
    bench.node.load_began("reviewer", 0)
    bench.node.loaded("reviewer", 7_000, memory_bytes=17 * GB)
    assert (model.memory_bytes, model.load_ms) == (17 * GB, 7_000)
    assert bench.node.free_bytes == 47 * GB
    bench.node.unload_began("reviewer")
    bench.node.unloaded("reviewer")
    assert bench.node.free_bytes == 64 * GB


def test_a_measurement_amid_a_change_is_not_believed() -> None:
    bench = Bench()
    bench.node.load_began("coder", 0)
    bench.node.measured(60 * GB)
    assert bench.node.free_bytes == 45 * GB
    bench.node.loaded("coder", 9_500)
    bench.node.measured(44 * GB)
    assert bench.node.free_bytes == 44 * GB


def test_the_pinned_come_first_and_never_go() -> None:
    bench = Bench(CODER, JUDGE, replace(ARCHITECT, weights_bytes=50 * GB))
    bench.ask("coder", "critical")
    assert bench.orders.load == Load("judge", "pinned")
    bench.hold("judge")
    assert bench.orders.load == Load("coder", "room")
    bench.hold("coder")
    bench.node.withdrawn(1)
    bench.ask("architect")
    assert bench.orders.unloads == (Unload("coder", "idle", "architect"),)


def test_one_change_of_memory_at_a_time_while_others_serve_on() -> None:
    bench = Bench()
    bench.hold("coder")
    bench.node.load_began("reviewer", 0)
    bench.ask("architect")
    ticket = bench.ask("coder")
    orders = bench.orders
    assert started(bench) == [ticket]
    assert not orders.load
    assert not orders.unloads


def test_a_load_is_paid_for_with_one_request() -> None:
    bench = Bench()
    bench.ask("coder", "high")
    bench.now_ms = 20_000
    bench.node.loaded("architect", 20_000)
    ticket = bench.ask("architect", "high")
    assert [start.ticket for start in bench.at(25_000).starts] == [ticket]


def test_but_not_when_somebody_more_urgent_is_past_his_time_and_it_is_not() -> None:
    bench = Bench()
    bench.ask("coder", "critical")
    bench.node.loaded("architect", 0)
    bench.ask("architect", "normal")
    orders = bench.at(6_000)
    assert orders.starts == ()
    assert orders.unloads == (Unload("architect", "bound", "coder"),)


def test_one_start_in_four_goes_to_the_overdue_however_many_are_more_urgent() -> None:
    bench = Bench()
    bench.hold("coder")
    old = bench.ask("coder", "batch")
    bench.now_ms = BOUNDS_MS["batch"]
    for _ in range(8):
        bench.ask("coder", "critical")
    served: list[tuple[bool, str]] = []
    for _ in range(5):
        start = bench.orders.starts[0]
        bench.node.started(start.ticket, bench.now_ms)
        bench.node.finished(start.ticket, bench.now_ms)
        served.append((start.ticket == old, start.reason))
    assert served == [(False, "resident")] * 3 + [(True, "overdue_share"), (False, "resident")]


def test_the_model_that_serves_more_requests_for_its_load_comes_first() -> None:
    bench = Bench()
    bench.ask("architect", tokens=100)
    bench.ask("coder", tokens=100)
    assert bench.orders.load == Load("coder", "room")
    for _ in range(20):
        bench.ask("architect", tokens=100)
    assert bench.orders.load == Load("architect", "room")


def test_what_the_bus_still_holds_counts_for_the_gain() -> None:
    bench = Bench()
    bench.ask("architect")
    bench.ask("coder")
    bench.node.behind("architect", "normal", 500)
    assert bench.orders.load == Load("architect", "room")


def test_of_those_due_soon_the_first_due_comes_first() -> None:
    bench = Bench()
    bench.ask("architect", "high")
    bench.now_ms = 1_000
    bench.ask("coder", "high")
    assert bench.orders.load == Load("architect", "room")


def test_a_load_that_failed_is_tried_again_later() -> None:
    bench = Bench()
    bench.ask("coder")
    bench.node.load_began("coder", 0)
    bench.node.load_failed("coder", retry_ms=5_000)
    assert waits(bench.orders) == {"coder": "load_failed"}
    assert bench.orders.ask_at_ms == 5_000
    assert bench.at(5_000).load == Load("coder", "room")
    assert bench.node.free_bytes == 64 * GB


def test_a_model_that_nobody_used_for_two_hours_goes_and_the_pinned_stay() -> None:
    bench = Bench(CODER, JUDGE)
    bench.hold("coder", "judge")
    bench.node.finished(bench.run("coder"), 0)
    assert bench.orders.ask_at_ms == 7_200_000
    assert not bench.at(7_199_999).acts
    assert bench.at(7_200_000).unloads == (Unload("coder", "unused"),)


def test_a_message_that_comes_twice_is_taken_once() -> None:
    bench = Bench()
    bench.hold("coder")
    ticket = bench.ask("coder")
    again = Job(ticket, "coder", "normal", 0, FAR_MS, 300)
    assert not bench.node.arrived(again, 0)
    bench.node.started(ticket, 0)
    assert not bench.node.arrived(again, 0)
    assert bench.node.finished(ticket, 0) == again
    assert bench.node.finished(ticket, 0) is None
    assert bench.orders.starts == ()


def test_what_cannot_be_is_an_error() -> None:
    bench = Bench()
    bench.hold("coder")
    bench.run("coder")
    with pytest.raises(ValueError, match="generating"):
        bench.node.unload_began("coder")
    with pytest.raises(ValueError, match="no free slot"):
        bench.node.started(bench.ask("coder"), 0)
    with pytest.raises(ValueError, match="does not wait"):
        bench.node.started(99, 0)


def test_a_node_takes_from_the_bus_what_it_could_hold_next() -> None:
    bench = Bench()
    assert (bench.node.room("coder", "normal"), bench.node.room("reviewer", "high")) == (1, 2)
    bench.ask("reviewer", "high")
    assert (bench.node.room("reviewer", "high"), bench.node.room("reviewer", "batch")) == (1, 2)


def test_a_decision_looks_at_heads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.hold("coder")
    for at in range(10_000):
        bench.ask(("architect", "coder", "reviewer")[at % 3], URGENCIES[at % 4])
    looked: list[int] = []
    at_head = Line.__getitem__

    def getitem(line: Line, at: int) -> object:
        looked.append(at)
        return at_head(line, at)

    def never(line: Line) -> Iterator[object]:
        raise AssertionError("every request was looked at")

    monkeypatch.setattr(Line, "__getitem__", getitem)
    monkeypatch.setattr(Line, "__iter__", never)
    assert bench.orders.acts
    assert max(looked) < 2
    assert len(looked) < 100


def test_overdue_batch_goes_on_until_anothers_bound_comes() -> None:
    """40 s of batch, its own bound long past: it may start until 40 s before the other's."""
    bench = Bench()
    bench.hold("architect")
    batch = bench.ask("architect", "batch", tokens=1_000)
    bench.now_ms = BOUNDS_MS["batch"]
    bench.ask("coder")
    assert started(bench) == [batch]
    bench.now_ms += 49_999
    assert started(bench) == [batch]
    bench.now_ms += 1
    assert started(bench) == []


def test_of_equals_the_older_goes_before_the_swap() -> None:
    bench = Bench()
    bench.hold("architect")
    older = bench.ask("architect")
    bench.now_ms = 1_000
    bench.ask("coder")
    bench.now_ms = 85_000
    assert started(bench) == [older]


def test_batch_is_loaded_for_last_however_much_of_it_there_is() -> None:
    bench = Bench()
    for _ in range(20):
        bench.ask("architect", "batch", tokens=100)
    bench.ask("coder")
    assert bench.orders.load == Load("coder", "room")


def test_nobody_slips_in_before_one_that_is_due() -> None:
    """The reviewer would fit beside the coder, and keep the architect waiting once more."""
    bench = Bench()
    bench.hold("coder")
    bench.run("coder", tokens=9_000)
    bench.ask("architect")
    bench.now_ms = 91_000
    bench.ask("reviewer")
    assert not bench.orders.acts
    assert waits(bench.orders) == {"architect": "making_room"}


def test_one_that_makes_room_enough_spares_the_others() -> None:
    bench = Bench(ModelSpec("small", 9 * GB, 30), ModelSpec("large", 45 * GB, 30), ModelSpec("wanted", 20 * GB, 30))
    bench.hold("small", "large")
    bench.now_ms = 5
    bench.node.finished(bench.run("large"), 5)
    bench.ask("wanted")
    assert bench.orders.unloads == (Unload("large", "idle", "wanted"),)


def test_what_is_being_loaded_may_have_to_go_too_and_its_neighbours_are_held_back() -> None:
    bench = Bench()
    bench.hold("coder")
    bench.ask("architect")
    bench.now_ms = 90_000
    bench.node.load_began("reviewer", 90_000)
    bench.ask("coder")
    assert not bench.orders.acts
    assert waits(bench.orders) == {"architect": "changing"}


def test_the_pinned_do_not_go_though_only_they_would_make_room_enough() -> None:
    bench = Bench(replace(ARCHITECT, weights_bytes=50 * GB), JUDGE)
    bench.hold("judge")
    bench.ask("architect")
    bench.node.measured(52 * GB)
    assert bench.orders.waits == (Wait("architect", "memory_taken", 55 * GB, 52 * GB),)
    assert not bench.orders.acts


def test_a_load_pays_for_one_request_and_not_for_every_slot() -> None:
    bench = Bench()
    bench.ask("architect")
    bench.now_ms = 88_000
    bench.node.loaded("reviewer", 88_000)
    first = bench.ask("reviewer")
    bench.ask("reviewer")
    assert started(bench) == [first]


def test_the_unused_stay_while_memory_is_being_changed() -> None:
    bench = Bench()
    bench.hold("reviewer")
    bench.node.load_began("coder", 7_200_000)
    assert not bench.at(7_200_000).acts
    bench.node.loaded("coder", 7_209_500)
    assert bench.at(7_209_500).unloads == (Unload("reviewer", "unused"),)


def test_room_is_made_for_one_load_only() -> None:
    bench = Bench()
    bench.hold("coder")
    bench.node.unload_began("coder", "architect")
    bench.node.unloaded("coder")
    bench.node.load_began("architect", 0)
    bench.node.loaded("architect", 26_000)
    bench.node.unloaded("architect")  # somebody else unloaded it
    bench.ask("architect")
    bench.ask("coder")
    assert bench.orders.load == Load("coder", "room")


def test_what_the_bus_still_holds_is_taken_to_be_as_long_as_what_is_here() -> None:
    bench = Bench()
    bench.ask("architect", tokens=1_000)
    bench.node.behind("architect", "normal", 9)
    bench.ask("coder")
    bench.ask("coder")
    assert bench.orders.load == Load("coder", "room")


def test_a_model_of_the_policy_as_the_scheduler_sees_it() -> None:
    model = Model(
        nodes=("macbook",), provider="ollama", backend="llama3.1:8b", memory_gb=5.5, context_tokens=16_000,
        resident=True, slots=4, quality=0.45, tokens_per_s=35,
    )  # fmt: skip
    spec = spec_of("judge", model)
    assert spec == ModelSpec("judge", 5_500_000_000, 35, slots=4, context_tokens=16_000, pinned=True)
    assert NodeState([spec], 24 * GB).models["judge"].memory_bytes == 5_500_000_000
