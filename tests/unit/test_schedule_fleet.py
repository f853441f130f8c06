"""However nodes come, drain, sleep, wake and die with work in hand: nothing is lost, nothing is done twice for nothing.

The fleet does with work what routers and executors do: what a silent node held goes to others, what waits on a draining
one too, and whoever wakes drops what was moved meanwhile before it starts it.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.waiting import Job
from subjects.grammar import URGENCIES
from tests.bench.swap_traces import MODELS, TOTAL_BYTES
from tests.support.virtual_node import FOREVER_MS, Clock, Fate, VirtualNode

CHANGES = 500
REQUESTS = 1_000
SPAN_MS = 10_000_000


class Fleet:
    """Nodes on one clock. A request that is moved goes on under another ticket, as its next attempt does."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.clock = Clock()
        self.awake: list[VirtualNode] = []
        self.asleep: list[VirtualNode] = []
        self.drained: list[VirtualNode] = []
        self.every: list[VirtualNode] = []
        self.homeless: list[Job] = []
        self.request: dict[int, int] = {}
        """By ticket."""
        self.moved: set[int] = set()
        """Tickets whose results come too late: fenced."""
        self.interrupted: Counter[int] = Counter()
        """Requests, by how often they were running when they were moved."""
        self.changes: Counter[str] = Counter()
        self._tickets = count(REQUESTS)

    def ask(self, request: int) -> None:
        model, tokens = self.chance.choice(MODELS).name, self.chance.randint(20, 400)
        urgency = self.chance.choice(URGENCIES)
        self.place(Job(request, model, urgency, self.clock.now_ms, FOREVER_MS, tokens))

    def place(self, job: Job) -> None:
        if not self.awake:
            self.homeless.append(job)
            return
        ticket = next(self._tickets)
        self.request[ticket] = self.request.get(job.ticket, job.ticket)
        assert self.chance.choice(self.awake).take(Fate(replace(job, ticket=ticket), job.tokens))

    def deliver_again(self) -> None:
        """An acknowledgement lapsed: what waits or runs comes a second time, and is not taken twice."""
        if in_hand := [(node, fate) for node in self.awake for fate in node.in_hand]:
            node, fate = self.chance.choice(in_hand)
            assert not node.take(fate)

    def change(self) -> None:
        """One node comes or goes."""
        if len(self.awake) < 1 + self.chance.randrange(6):
            ways = {"join": True, "wake": bool(self.asleep), "resume": bool(self.drained)}
        else:
            ways = {"die": True, "sleep": True, "drain": True}
        way = self.chance.choice([way for way, possible in ways.items() if possible])
        self.changes[way] += 1
        does: dict[str, Callable[[], None]] = {
            "join": self.join, "wake": self.wake, "resume": self.resume,
            "die": self.die, "sleep": self.sleep, "drain": self.drain,
        }  # fmt: skip
        does[way]()

    def join(self) -> None:
        self.every.append(VirtualNode(MODELS, TOTAL_BYTES, clock=self.clock))
        self.came(self.every[-1])

    def wake(self) -> None:
        node = self.pick(self.asleep)
        node.hand_back(fate.job.ticket for fate in node.in_hand if fate.job.ticket in self.moved)
        node.wake()
        self.came(node)

    def resume(self) -> None:
        self.came(self.pick(self.drained))

    def came(self, node: VirtualNode) -> None:
        self.awake.append(node)
        homeless, self.homeless = self.homeless, []
        for job in homeless:
            self.place(job)
        self.move_from_silent()

    def die(self) -> None:
        node = self.pick(self.awake)
        node.leave()
        self.move(node.in_hand)

    def sleep(self) -> None:
        node = self.pick(self.awake)
        node.sleep()
        self.asleep.append(node)
        self.move_from_silent()

    def drain(self) -> None:
        node = self.pick(self.awake)
        in_hand = node.in_hand
        waiting = node.hand_back(fate.job.ticket for fate in in_hand)
        self.move([fate for fate in in_hand if fate.job.ticket in waiting])
        self.drained.append(node)

    def pick(self, nodes: list[VirtualNode]) -> VirtualNode:
        return nodes.pop(self.chance.randrange(len(nodes)))

    def move_from_silent(self) -> None:
        """What nobody else can take waits for the return of its node."""
        if self.awake:
            for node in self.asleep:
                self.move(node.in_hand)

    def move(self, fates: list[Fate]) -> None:
        for fate in fates:
            if fate.job.ticket not in self.moved:
                self.moved.add(fate.job.ticket)
                self.interrupted[self.request[fate.job.ticket]] += fate.starts
                self.place(fate.job)

    def fates(self) -> list[Fate]:
        return [fate for node in self.every for fate in node.run_log.fates.values()]

    def settle_all(self) -> None:
        """In the end all that sleep wake, and somebody is there."""
        while self.asleep:
            self.wake()
        self.join()


@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_500_joins_and_leaves_lose_nothing_and_double_nothing(seed: int) -> None:
    chance = random.Random(seed)
    fleet = Fleet(chance)
    for _ in range(CHANGES):
        fleet.clock.at(chance.randint(0, SPAN_MS), fleet.change)
        fleet.clock.at(chance.randint(0, SPAN_MS), fleet.deliver_again)
    for request in range(REQUESTS):
        fleet.clock.at(chance.randint(0, SPAN_MS), lambda request=request: fleet.ask(request))  # type: ignore[misc]
    fleet.clock.at(SPAN_MS + 1, fleet.settle_all)
    while fleet.clock.step():
        pass
    fates = fleet.fates()
    answers = [fate for fate in fates if fate.ended_ms is not None and fate.job.ticket not in fleet.moved]
    assert Counter(fleet.request[fate.job.ticket] for fate in answers) == Counter(range(REQUESTS))
    starts: Counter[int] = Counter()
    for fate in fates:
        starts[fleet.request[fate.job.ticket]] += fate.starts
    # Begun once, and once more for each time that its node was lost while it ran.
    assert starts == Counter(range(REQUESTS)) + fleet.interrupted
    assert fleet.changes.total() == CHANGES
    assert len(fleet.changes) == 6
    assert fleet.interrupted.total() > 0
    assert len(fleet.moved) > fleet.interrupted.total()
