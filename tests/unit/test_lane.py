"""A lane never runs more than its slots, lets the most urgent and then the oldest go first, and loses no place."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.lane import Lane
from subjects.grammar import URGENCIES, Urgency

pytestmark = pytest.mark.timeout(60)


@dataclass(eq=False)
class Worker:
    """One user of a lane, told when to go home."""

    urgency: Urgency
    seq: int
    may_leave: asyncio.Event = field(default_factory=asyncio.Event)
    inside: bool = False

    async def run(self, lane: Lane, entered: list["Worker"]) -> None:
        async with lane.place(self.urgency, self.seq):
            self.inside = True
            entered.append(self)
            try:
                await self.may_leave.wait()
            finally:
                self.inside = False


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_most_urgent_goes_first_then_the_oldest() -> None:
    lane, entered = Lane(1), list[Worker]()
    order: list[tuple[Urgency, int]] = [
        ("normal", 1), ("batch", 2), ("normal", 4), ("critical", 9), ("normal", 3), ("high", 8), ("critical", 5),
    ]  # fmt: skip
    workers = [Worker(urgency, seq) for urgency, seq in order]
    async with asyncio.TaskGroup() as tasks:
        for worker in workers:
            tasks.create_task(worker.run(lane, entered))
            await settled()
        assert (lane.running, lane.waiting) == (1, 6)
        for _ in workers:
            entered[-1].may_leave.set()
            await settled()
    first, *rest = [(worker.urgency, worker.seq) for worker in entered]
    assert first == ("normal", 1)
    assert rest == sorted(rest, key=lambda each: (URGENCIES.index(each[0]), each[1]))
    assert (lane.running, lane.waiting) == (0, 0)


async def test_room_counts_what_waits_of_the_same_urgency() -> None:
    lane, entered = Lane(2), list[Worker]()
    workers = [Worker("normal", seq) for seq in range(4)]
    async with asyncio.TaskGroup() as tasks:
        for worker in workers:
            tasks.create_task(worker.run(lane, entered))
        await settled()
        assert (lane.running, lane.waiting) == (2, 2)
        assert {urgency: lane.room(urgency) for urgency in URGENCIES} == {
            "critical": 2, "high": 2, "normal": 0, "batch": 2,
        }  # fmt: skip
        for worker in workers:
            worker.may_leave.set()
    assert lane.room("normal") == 2


async def test_a_place_given_to_one_who_is_cancelled_in_the_same_moment_is_passed_on() -> None:
    lane, entered = Lane(1), list[Worker]()
    holder, gone, heir = (Worker("normal", seq) for seq in (1, 2, 3))
    holding = asyncio.create_task(holder.run(lane, entered))
    await settled()
    going = asyncio.create_task(gone.run(lane, entered))
    inheriting = asyncio.create_task(heir.run(lane, entered))
    await settled()
    holder.may_leave.set()
    await asyncio.sleep(0)  # the holder has left and given its place to `gone`, which has not run since
    assert not gone.inside
    going.cancel()
    await asyncio.gather(holding, going, return_exceptions=True)
    await settled()
    assert entered == [holder, heir]
    heir.may_leave.set()
    await inheriting
    assert (lane.running, lane.waiting) == (0, 0)


async def test_the_same_message_may_wait_twice() -> None:
    """After a pause longer than its acknowledgement time a message is delivered again to the same executor."""
    lane, entered = Lane(1), list[Worker]()
    workers = [Worker("normal", seq) for seq in (1, 7, 7, 7)]
    running = [asyncio.create_task(worker.run(lane, entered)) for worker in workers]
    await settled()
    for worker in workers:
        worker.may_leave.set()
    await asyncio.gather(*running)
    assert len(entered) == 4
    assert (lane.running, lane.waiting) == (0, 0)


async def test_an_error_inside_gives_the_place_back() -> None:
    lane = Lane(1)
    with pytest.raises(ZeroDivisionError):
        async with lane.place("normal", 1):
            raise ZeroDivisionError
    async with lane.place("normal", 2):
        assert lane.running == 1
    assert lane.running == 0


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "cancel"]), st.sampled_from(URGENCIES), st.integers(0, 9), st.booleans()
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 3), ACTIONS)
def test_no_order_of_coming_going_and_cancelling_loses_a_place(
    slots: int, actions: list[tuple[str, Urgency, int, bool]]
) -> None:
    asyncio.run(_play(slots, actions))


async def _play(slots: int, actions: list[tuple[str, Urgency, int, bool]]) -> None:
    lane, entered = Lane(slots), list[Worker]()
    at_work: dict[Worker, asyncio.Task[None]] = {}
    for seq, (action, urgency, pick, at_once) in enumerate(actions):
        if action == "enter":
            worker = Worker(urgency, seq)
            at_work[worker] = asyncio.create_task(worker.run(lane, entered))
        elif at_work:
            worker = list(at_work)[pick % len(at_work)]
            if action == "cancel":
                at_work.pop(worker).cancel()
            elif worker.inside:
                worker.may_leave.set()
                del at_work[worker]
        if not at_once:
            await settled()
        assert lane.running <= slots
    await settled()
    inside = sum(worker.inside for worker in at_work)
    assert inside == min(slots, len(at_work))  # nobody waits beside a free place
    assert (lane.running, lane.waiting) == (inside, len(at_work) - inside)
    for worker in at_work:
        worker.may_leave.set()
    await asyncio.gather(*at_work.values())
    assert (lane.running, lane.waiting) == (0, 0)
