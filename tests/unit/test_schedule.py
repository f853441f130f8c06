"""What a node starts and refuses: one rule, one example. Times in ms."""

from collections.abc import Iterator

import pytest

from router.core.orders import Orders, Refusal
from router.core.residency import BOUNDS_MS
from router.core.waiting import Job, Line
from subjects.grammar import URGENCIES
from tests.support.schedule_desk import FAR_MS, Desk


def test_an_empty_node_has_nothing_to_do() -> None:
    assert Desk().orders == Orders()


def test_what_is_in_memory_serves_the_most_urgent_then_the_oldest() -> None:
    desk = Desk()
    desk.hold("coder")
    tickets = [desk.ask("coder", urgency) for urgency in ("batch", "normal", "normal", "critical", "high")]
    served: list[int] = []
    for _ in tickets:
        start = desk.orders.starts[0]
        assert start.reason == "resident"
        desk.node.started(start.ticket, desk.now_ms)
        desk.node.finished(start.ticket, desk.now_ms)
        served.append(start.ticket)
    assert served == [tickets[3], tickets[4], tickets[1], tickets[2], tickets[0]]


def test_a_model_serves_as_many_as_it_has_slots() -> None:
    desk = Desk()
    desk.hold("reviewer")
    first, second, third = (desk.ask("reviewer") for _ in range(3))
    assert desk.started == [first, second]
    desk.node.started(first, 0)
    assert desk.started == [second]
    desk.node.started(second, 0)
    assert desk.started == []
    desk.node.finished(first, 0)
    assert desk.started == [third]


def test_what_is_past_its_deadline_is_refused() -> None:
    desk = Desk()
    desk.hold("coder")
    desk.run("coder")
    late, in_time = desk.ask("coder", timeout_ms=5_000), desk.ask("coder", timeout_ms=60_000)
    assert desk.orders.ask_at_ms == 5_000
    assert desk.at(5_000).refusals == (Refusal(late, "deadline"),)
    assert desk.node.withdrawn(late)
    assert desk.orders.refusals == ()
    assert in_time in desk.node.queue


def test_one_start_in_four_goes_to_the_overdue_however_many_are_more_urgent() -> None:
    desk = Desk()
    desk.hold("coder")
    old = desk.ask("coder", "batch")
    desk.now_ms = BOUNDS_MS["batch"]
    for _ in range(8):
        desk.ask("coder", "critical")
    served: list[tuple[bool, str]] = []
    for _ in range(5):
        start = desk.orders.starts[0]
        desk.node.started(start.ticket, desk.now_ms)
        desk.node.finished(start.ticket, desk.now_ms)
        served.append((start.ticket == old, start.reason))
    assert served == [(False, "resident")] * 3 + [(True, "overdue_share"), (False, "resident")]


def test_a_message_that_comes_twice_is_taken_once() -> None:
    desk = Desk()
    desk.hold("coder")
    ticket = desk.ask("coder")
    again = Job(ticket, "coder", "normal", 0, FAR_MS, 300)
    assert not desk.node.arrived(again, 0)
    desk.node.started(ticket, 0)
    assert not desk.node.arrived(again, 0)
    assert desk.node.finished(ticket, 0) == again
    assert desk.node.finished(ticket, 0) is None
    assert desk.orders.starts == ()


def test_what_cannot_be_is_an_error() -> None:
    desk = Desk()
    desk.hold("coder")
    desk.run("coder")
    with pytest.raises(ValueError, match="generating"):
        desk.node.unload_began("coder")
    with pytest.raises(ValueError, match="no free slot"):
        desk.node.started(desk.ask("coder"), 0)
    with pytest.raises(ValueError, match="does not wait"):
        desk.node.started(99, 0)


def test_a_node_takes_from_the_bus_what_it_could_hold_next() -> None:
    desk = Desk()
    assert (desk.node.room("coder", "normal"), desk.node.room("reviewer", "high")) == (1, 2)
    desk.ask("reviewer", "high")
    assert (desk.node.room("reviewer", "high"), desk.node.room("reviewer", "batch")) == (1, 2)


def test_a_decision_looks_at_heads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    desk.hold("coder")
    for at in range(10_000):
        desk.ask(("architect", "coder", "reviewer")[at % 3], URGENCIES[at % 4])
    looked: list[int] = []
    at_head = Line.__getitem__

    def getitem(line: Line, at: int) -> object:
        looked.append(at)
        return at_head(line, at)

    def never(line: Line) -> Iterator[object]:
        raise AssertionError("every request was looked at")

    monkeypatch.setattr(Line, "__getitem__", getitem)
    monkeypatch.setattr(Line, "__iter__", never)
    assert desk.orders.acts
    assert max(looked) < 2
    assert len(looked) < 100
