"""A node on a virtual clock: the real scheduler's orders, carried out by events, with every rule of memory checked."""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from router.core.orders import Load, Orders, Refusal, Start, Unload
from router.core.residency import ModelSpec, NodeState, Rules
from router.core.schedule import schedule
from router.core.waiting import Job
from subjects.grammar import Urgency

UNLOAD_MS = 500
FOREVER_MS = 10**12

Scheduler = Callable[[NodeState, int], Orders]


@dataclass(frozen=True, slots=True)
class Ask:
    """Somebody asks `model` at `at_ms`, or so long after the answer it follows; then `follow_up` is asked."""

    at_ms: int
    model: str
    tokens: int
    urgency: Urgency = "normal"
    timeout_ms: int = FOREVER_MS
    expected: int | None = None
    """What the scheduler is told; absent: the truth."""
    follow_up: "Ask | None" = None


@dataclass(slots=True)
class Fate:
    """What became of a request."""

    job: Job
    tokens: int
    started_ms: int | None = None
    ended_ms: int | None = None
    refusal: Refusal | None = None
    starts: int = 0

    @property
    def start_ms(self) -> int:
        assert self.started_ms is not None
        return self.started_ms

    @property
    def end_ms(self) -> int:
        assert self.ended_ms is not None
        return self.ended_ms

    @property
    def wait_ms(self) -> int:
        return self.start_ms - self.job.arrived_ms

    @property
    def late(self) -> bool:
        return self.ended_ms is None or self.ended_ms > self.job.deadline_ms


@dataclass(frozen=True, slots=True)
class Span:
    """A model was so from one time to another."""

    model: str
    what: Literal["loading", "resident", "unloading"]
    from_ms: int
    to_ms: int


@dataclass(slots=True)
class Run:
    """What happened on a node, from the first request to the end of the last."""

    specs: Sequence[ModelSpec]
    rules: Rules
    fates: dict[int, Fate] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    orders: list[tuple[int, Orders]] = field(default_factory=list)
    end_ms: int = 0

    @property
    def loads(self) -> int:
        return sum(1 for span in self.spans if span.what == "loading")

    @property
    def served(self) -> list[Fate]:
        return [fate for fate in self.fates.values() if fate.started_ms is not None]


class Clock:
    """One for all nodes that live together: moments in order, and after each what those it touched make of it."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.touched: dict[VirtualNode, None] = {}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, at_ms: int, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_ms, next(self._order), event))

    def step(self) -> bool:
        """Everything that happens at the next moment; False: nothing is to come."""
        if not self._events:
            return False
        self.now_ms = self._events[0][0]
        while self._events and self._events[0][0] == self.now_ms:
            heapq.heappop(self._events)[2]()
        touched, self.touched = self.touched, {}
        for node in touched:
            node.settle()
        return True


class VirtualNode:
    """`run` plays everything; `take`, `hand_back`, `sleep` and `leave` are for those who play with several nodes."""

    def __init__(
        self, specs: Sequence[ModelSpec], total_bytes: int, *, rules: Rules | None = None,
        scheduler: Scheduler = schedule, unload_ms: int = UNLOAD_MS, clock: Clock | None = None, pulls: bool = False,
    ) -> None:  # fmt: skip
        """`pulls`: it takes from the bus what it has room for and knows only the number of the rest."""
        self.state = NodeState(specs, total_bytes, rules=rules)
        self.clock = clock or Clock()
        self.run_log = Run(specs, self.state.rules)
        self._scheduler = scheduler
        self._unload_ms = unload_ms
        self._tickets = count(1)
        self._since: dict[str, int] = {}
        self._timers: set[int] = set()
        self._follow_ups: dict[int, Ask] = {}
        self._gone = False
        self._asleep = False
        self._missed: list[Callable[[], None]] = []
        """What would have happened while it slept."""
        self._pulls = pulls
        self._bus: dict[tuple[str, Urgency], deque[Fate]] = defaultdict(deque)

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms

    def run(self, asks: Iterable[Ask]) -> Run:
        for ask in asks:
            self.ask(ask, ask.at_ms)
        while self.clock.step():
            pass
        self.run_log.end_ms = max((fate.ended_ms or 0 for fate in self.run_log.fates.values()), default=0)
        for name, model in self.state.models.items():
            if model.phase == "resident":
                self._span(name, "resident", max(self.run_log.end_ms, self._since[name]))
        return self.run_log

    def ask(self, ask: Ask, at_ms: int) -> None:
        self._later(at_ms - self.now_ms, lambda: self._arrive(ask))

    def _arrive(self, ask: Ask) -> None:
        ticket = next(self._tickets)
        expected = ask.tokens if ask.expected is None else ask.expected
        job = Job(ticket, ask.model, ask.urgency, self.now_ms, self.now_ms + ask.timeout_ms, expected)
        if ask.follow_up is not None:
            self._follow_ups[ticket] = ask.follow_up
        fate = Fate(job, ask.tokens)
        if not self._pulls:
            assert self.take(fate)
            return
        self.run_log.fates[ticket] = fate
        self._bus[job.model, job.urgency].append(fate)
        self._pull()

    def _pull(self) -> None:
        for (model, urgency), waiting in self._bus.items():
            while waiting and self.state.room(model, urgency) > 0:
                assert self.take(waiting.popleft())
            self.state.behind(model, urgency, len(waiting))

    def take(self, fate: Fate) -> bool:
        """False if it is here already."""
        self.clock.touched[self] = None
        self.run_log.fates[fate.job.ticket] = fate
        return self.state.arrived(fate.job, self.now_ms)

    def measured(self, free_bytes: int) -> None:
        self.clock.touched[self] = None
        self.state.measured(free_bytes)

    @property
    def in_hand(self) -> list[Fate]:
        """What waits or runs here."""
        waiting, fates = self.state.queue, self.run_log.fates.values()
        return [fate for fate in fates if fate.job.ticket in waiting or (fate.starts and fate.ended_ms is None)]

    def hand_back(self, tickets: Iterable[int]) -> list[int]:
        """Those of them that wait here, which they no longer do."""
        self.clock.touched[self] = None
        return [ticket for ticket in tickets if self.state.withdrawn(ticket)]

    def sleep(self) -> None:
        """As with SIGSTOP: nothing happens here until it wakes; then it does, late."""
        self._asleep = True

    def wake(self) -> None:
        self.clock.touched[self] = None
        self._asleep = False
        missed, self._missed = self._missed, []
        for event in missed:
            event()

    def leave(self) -> None:
        """Gone without a word."""
        self._gone = True

    def _later(self, after_ms: int, event: Callable[[], None]) -> None:
        """Nothing happens any more on a node that has gone."""

        def happens() -> None:
            if self._asleep:
                self._missed.append(event)
            elif not self._gone:
                self.clock.touched[self] = None
                event()

        self.clock.at(self.now_ms + after_ms, happens)

    def settle(self) -> None:
        """Do what the scheduler says until it has nothing more to say, and ask again when it wants to be asked."""
        if self._gone or self._asleep:
            return
        while (orders := self._scheduler(self.state, self.now_ms)).acts:
            self.run_log.orders.append((self.now_ms, orders))
            self._follow(orders)
            self._pull()
        at_ms = orders.ask_at_ms
        if at_ms is not None and at_ms not in self._timers and len(self.state.queue):
            assert at_ms > self.now_ms, "asked to be asked again at once, for nothing"
            self._timers.add(at_ms)
            self._later(at_ms - self.now_ms, lambda: self._timers.discard(at_ms))

    def _follow(self, orders: Orders) -> None:
        for refusal in orders.refusals:
            assert self.state.withdrawn(refusal.ticket)
            self.run_log.fates[refusal.ticket].refusal = refusal
        for unload in orders.unloads:
            self._unload(unload)
        if orders.load:
            self._load(orders.load)
        for start in orders.starts:
            self._start(start)

    def _start(self, start: Start) -> None:
        fate = self.run_log.fates[start.ticket]
        model = self.state.models[start.model]
        assert start.model == fate.job.model
        assert model.phase == "resident", f"{start.model} is {model.phase} and cannot generate"
        self.state.started(start.ticket, self.now_ms)
        fate.started_ms, fate.starts = self.now_ms, fate.starts + 1
        self._later(model.generation_ms(fate.tokens), lambda: self._finish(fate))

    def _finish(self, fate: Fate) -> None:
        ticket = fate.job.ticket
        if self.state.finished(ticket, self.now_ms):
            fate.ended_ms = self.now_ms
            if follow_up := self._follow_ups.get(ticket):
                self.ask(follow_up, self.now_ms + follow_up.at_ms)

    def _load(self, load: Load) -> None:
        model = self.state.models[load.model]
        assert model.phase == "absent"
        assert not self.state.changing, "one change of memory at a time"
        self.state.load_began(load.model, self.now_ms)
        assert self.state.free_bytes >= self.state.rules.headroom_bytes, "the machine would swap"
        self._since[load.model] = self.now_ms
        self._later(model.load_ms, lambda: self._loaded(load.model))

    def _loaded(self, name: str) -> None:
        self._span(name, "loading")
        self.state.loaded(name, self.now_ms)

    def _unload(self, unload: Unload) -> None:
        model = self.state.models[unload.model]
        assert model.phase == "resident"
        assert not model.running, f"{unload.model} is generating"
        assert not model.spec.pinned, f"{unload.model} is pinned"
        self._span(unload.model, "resident")
        self.state.unload_began(unload.model, unload.made_room_for)
        self._later(self._unload_ms, lambda: self._unloaded(unload.model))

    def _unloaded(self, name: str) -> None:
        self._span(name, "unloading")
        self.state.unloaded(name)

    def _span(self, name: str, what: Literal["loading", "resident", "unloading"], to_ms: int | None = None) -> None:
        to_ms = self.now_ms if to_ms is None else to_ms
        self.run_log.spans.append(Span(name, what, self._since[name], to_ms))
        self._since[name] = to_ms
