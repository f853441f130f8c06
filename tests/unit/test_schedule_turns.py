"""When one model makes room for another: one rule, one example. A load takes 5 s for every 10 GB; times in ms."""

from router.core.orders import Load, Start, Unload
from router.core.residency import BOUNDS_MS
from tests.support.schedule_desk import Desk


def test_the_same_model_is_served_on_while_another_waits_within_its_bound() -> None:
    desk = Desk()
    desk.hold("architect")
    desk.ask("coder")
    first = desk.ask("architect")
    orders = desk.at(1_000)
    assert orders.starts == (Start(first, "architect", "before_swap"),)
    assert desk.waits == {"coder": "collating"}
    assert not orders.unloads
    assert orders.ask_at_ms == 90_000


def test_nothing_is_started_that_would_outlast_anothers_bound() -> None:
    """A younger request of 12 s: it may start until 12 s before the other's bound."""
    desk = Desk()
    desk.hold("architect")
    desk.ask("coder")
    desk.now_ms = 10_000
    younger = desk.ask("architect", tokens=300)
    assert [start.ticket for start in desk.at(77_999).starts] == [younger]
    orders = desk.at(78_000)
    assert orders.starts == ()
    assert orders.unloads == (Unload("architect", "bound", "coder"),)


def test_what_generates_is_not_unloaded_but_gets_nothing_more() -> None:
    desk = Desk()
    desk.hold("architect")
    desk.ask("coder")
    desk.now_ms = 10_000
    running = desk.run("architect", tokens=5_000)
    desk.ask("architect")
    orders = desk.at(95_000)
    assert not orders.acts
    assert desk.waits == {"coder": "making_room"}
    desk.node.finished(running, 95_000)
    assert desk.orders.unloads == (Unload("architect", "bound", "coder"),)


def test_when_all_are_overdue_the_turn_goes_on_with_those_who_were_there_when_it_began() -> None:
    desk = Desk()
    old = desk.ask("architect")
    desk.ask("coder")
    desk.now_ms = 1_000
    desk.hold("architect")
    desk.now_ms = 2_000
    desk.ask("architect")
    orders = desk.at(200_000)
    assert orders.starts == (Start(old, "architect", "before_swap"),)
    desk.node.started(old, 200_000)
    desk.node.finished(old, 200_000)
    assert desk.orders.unloads == (Unload("architect", "bound", "coder"),)


def test_batch_yields_to_everybody_within_one_request() -> None:
    desk = Desk()
    desk.hold("architect")
    running = desk.run("architect", "batch")
    desk.ask("architect", "batch")
    assert desk.at(1_000).starts == ()
    desk.ask("coder", "normal")
    assert desk.waits == {"coder": "making_room"}
    desk.node.finished(running, 2_000)
    orders = desk.at(2_000)
    assert orders.starts == ()
    assert orders.unloads == (Unload("architect", "batch_yields", "coder"),)


def test_batch_does_not_yield_to_batch() -> None:
    desk = Desk()
    desk.hold("architect")
    mine = desk.ask("architect", "batch")
    desk.ask("coder", "batch")
    assert desk.started == [mine]


def test_batch_waits_a_moment_for_the_next_word_of_a_conversation() -> None:
    """As long as both loads would take: 9.5 s and 26 s."""
    desk = Desk()
    desk.hold("coder")
    desk.node.finished(desk.run("coder", "high"), 0)
    desk.ask("architect", "batch")
    assert desk.waits == {"architect": "lingering"}
    assert desk.orders.ask_at_ms == 35_500
    assert desk.at(35_499).unloads == ()
    assert desk.at(35_500).unloads == (Unload("coder", "idle", "architect"),)


def test_batch_that_is_past_its_bound_gets_its_turn_from_a_busy_model() -> None:
    desk = Desk()
    desk.hold("coder")
    desk.ask("architect", "batch")
    desk.now_ms = BOUNDS_MS["batch"] + 1
    desk.ask("coder")
    assert desk.orders.unloads == (Unload("coder", "bound", "architect"),)


def test_a_deadline_brings_its_model_before_its_bound() -> None:
    """30 s left, of which the load takes 9.5 s and 300 tokens 10 s: the load begins after 10.5 s at the latest."""
    desk = Desk()
    desk.hold("architect")
    desk.ask("coder", timeout_ms=30_000)
    desk.now_ms = 1
    desk.ask("architect", tokens=25)
    assert desk.at(9_499).starts != ()
    orders = desk.at(9_500)
    assert orders.starts == ()
    assert orders.unloads == (Unload("architect", "deadline", "coder"),)


def test_a_deadline_that_no_load_could_meet_hurries_nobody() -> None:
    desk = Desk()
    desk.hold("architect")
    desk.ask("coder", timeout_ms=15_000)
    ticket = desk.ask("architect")
    assert [start.ticket for start in desk.at(1_000).starts] == [ticket]


def test_a_load_is_paid_for_with_one_request() -> None:
    desk = Desk()
    desk.ask("coder", "high")
    desk.now_ms = 20_000
    desk.node.loaded("architect", 20_000)
    ticket = desk.ask("architect", "high")
    assert [start.ticket for start in desk.at(25_000).starts] == [ticket]


def test_but_not_when_somebody_else_is_past_his_time_and_it_is_not() -> None:
    desk = Desk()
    desk.ask("coder", "critical")
    desk.node.loaded("architect", 0)
    desk.ask("architect", "normal")
    orders = desk.at(6_000)
    assert orders.starts == ()
    assert orders.unloads == (Unload("architect", "bound", "coder"),)


def test_the_model_that_serves_more_requests_for_its_load_comes_first() -> None:
    desk = Desk()
    desk.ask("architect", tokens=100)
    desk.ask("coder", tokens=100)
    assert desk.orders.load == Load("coder", "room")
    for _ in range(20):
        desk.ask("architect", tokens=100)
    assert desk.orders.load == Load("architect", "room")


def test_what_the_bus_still_holds_counts_for_the_gain() -> None:
    desk = Desk()
    desk.ask("architect")
    desk.ask("coder")
    desk.node.behind("architect", "normal", 500)
    assert desk.orders.load == Load("architect", "room")


def test_of_those_due_soon_the_first_due_comes_first() -> None:
    desk = Desk()
    desk.ask("architect", "high")
    desk.now_ms = 1_000
    desk.ask("coder", "high")
    assert desk.orders.load == Load("architect", "room")


def test_overdue_batch_goes_on_until_anothers_bound_comes() -> None:
    """40 s of batch, its own bound long past: it may start until 40 s before the other's."""
    desk = Desk()
    desk.hold("architect")
    batch = desk.ask("architect", "batch", tokens=1_000)
    desk.now_ms = BOUNDS_MS["batch"]
    desk.ask("coder")
    assert desk.started == [batch]
    desk.now_ms += 49_999
    assert desk.started == [batch]
    desk.now_ms += 1
    assert desk.started == []


def test_of_equals_the_older_goes_before_the_swap() -> None:
    desk = Desk()
    desk.hold("architect")
    older = desk.ask("architect")
    desk.now_ms = 1_000
    desk.ask("coder")
    desk.now_ms = 85_000
    assert desk.started == [older]


def test_batch_is_loaded_for_last_however_much_of_it_there_is() -> None:
    desk = Desk()
    for _ in range(20):
        desk.ask("architect", "batch", tokens=100)
    desk.ask("coder")
    assert desk.orders.load == Load("coder", "room")


def test_nobody_slips_in_before_one_that_is_due() -> None:
    """The reviewer would fit beside the coder, and keep the architect waiting once more."""
    desk = Desk()
    desk.hold("coder")
    desk.run("coder", tokens=9_000)
    desk.ask("architect")
    desk.now_ms = 91_000
    desk.ask("reviewer")
    assert not desk.orders.acts
    assert desk.waits == {"architect": "making_room"}


def test_what_is_being_loaded_may_have_to_go_too_and_its_neighbours_are_held_back() -> None:
    desk = Desk()
    desk.hold("coder")
    desk.ask("architect")
    desk.now_ms = 90_000
    desk.node.load_began("reviewer", 90_000)
    desk.ask("coder")
    assert not desk.orders.acts
    assert desk.waits == {"architect": "changing"}


def test_a_load_pays_for_one_request_and_not_for_every_slot() -> None:
    desk = Desk()
    desk.ask("architect")
    desk.now_ms = 88_000
    desk.node.loaded("reviewer", 88_000)
    first = desk.ask("reviewer")
    desk.ask("reviewer")
    assert desk.started == [first]


def test_what_the_bus_still_holds_is_taken_to_be_as_long_as_what_is_here() -> None:
    desk = Desk()
    desk.ask("architect", tokens=1_000)
    desk.node.behind("architect", "normal", 9)
    desk.ask("coder")
    desk.ask("coder")
    assert desk.orders.load == Load("coder", "room")
