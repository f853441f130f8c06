"""The best that any scheduler could have done with a few requests, all of them known beforehand: an exact search.

A schedule is a list of acts, each begun as early as the acts before it allow; every such list is looked at, but for
those that a bound or an equal state with no more cost rules out. Same rules as the virtual node: one change of memory
at a time, nothing unloaded that generates, headroom kept, models beside each other do not slow each other down.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from router.core.residency import ModelSpec, NodeState
from tests.support.virtual_node import UNLOAD_MS, Ask

Goal = Literal["mean", "last"]
"""The sum of all times from question to answer, or the end of the last answer; ms."""


@dataclass(frozen=True, slots=True)
class State:
    now_ms: int
    """When the last act began; the next begins no sooner."""
    loader_ms: int
    """When memory may be changed again."""
    held: tuple[tuple[str, tuple[int, ...], bool], ...]
    """Model, when each slot is free, served since its load; in order of name."""
    left: frozenset[int]


class Optimum:
    """`best` by `goal`; `known` is the cost of any valid schedule, which the search starts from."""

    def __init__(self, specs: Sequence[ModelSpec], total_bytes: int, asks: Sequence[Ask], goal: Goal) -> None:
        self._node = NodeState(specs, total_bytes)
        self._specs = {spec.name: spec for spec in specs}
        self._asks = asks
        self._goal = goal
        self._add: Callable[[int, int], int] = (lambda a, b: a + b) if goal == "mean" else max
        self._times = [self._node.models[ask.model].generation_ms(ask.tokens) for ask in asks]
        self._seen: dict[State, int] = {}
        self._best = 0

    def best(self, known: int) -> int:
        self._best = known
        self._search(State(0, 0, (), frozenset(range(len(self._asks)))), 0)
        return self._best

    def _search(self, state: State, cost: int) -> None:
        if not state.left:
            self._best = min(self._best, cost)
            return
        if self._add(cost, self._bound(state)) >= self._best or self._seen.get(state, cost + 1) <= cost:
            return
        self._seen[state] = cost
        for following, more in sorted(self._acts(state), key=lambda act: (act[0].now_ms, act[1])):
            self._search(following, self._add(cost, more))

    def _cost(self, at: int, start_ms: int) -> int:
        end_ms = start_ms + self._times[at]
        return end_ms - self._asks[at].at_ms if self._goal == "mean" else end_ms

    def _bound(self, state: State) -> int:
        """No schedule from here costs less."""
        held = {name: min(slots) for name, slots, _ in state.held}
        total = 0
        for name, spec in self._specs.items():
            left = [at for at in state.left if self._asks[at].model == name]
            load_ms = self._node.models[name].load_ms
            ready_ms = max(state.now_ms, held.get(name, max(state.now_ms, state.loader_ms) + load_ms))
            each = [self._cost(at, max(ready_ms, self._asks[at].at_ms)) for at in left]
            if self._goal == "mean":
                queued, begins = 0, [ready_ms] * spec.slots
                for at in sorted(left, key=lambda at: self._times[at]):
                    begins.sort()
                    queued += begins[0] + self._times[at] - self._asks[at].at_ms
                    begins[0] += self._times[at]
                total += max(sum(each), queued)
            elif left:
                total = max(total, *each, ready_ms + sum(self._times[at] for at in left) // spec.slots)
        return total

    def _acts(self, state: State) -> Iterator[tuple[State, int]]:
        held = {name: (slots, served) for name, slots, served in state.held}
        for at in state.left:
            ask = self._asks[at]
            if ask.model in held:
                slots = sorted(held[ask.model][0])
                start_ms = max(state.now_ms, ask.at_ms, slots[0])
                slots[0] = start_ms + self._times[at]
                after = {**held, ask.model: (tuple(sorted(slots)), True)}
                yield self._state(start_ms, state.loader_ms, after, state.left - {at}), self._cost(at, start_ms)
        for name in {self._asks[at].model for at in state.left} - held.keys():
            asked_ms = min(self._asks[at].at_ms for at in state.left if self._asks[at].model == name)
            for victims in self._victims(name, held):
                idle_ms = max((ms for victim in victims for ms in held[victim][0]), default=0)
                begin_ms = max(state.now_ms, state.loader_ms, idle_ms, asked_ms)
                ready_ms = begin_ms + (UNLOAD_MS if victims else 0) + self._node.models[name].load_ms
                after = {other: held[other] for other in held if other not in victims}
                after[name] = ((ready_ms,) * self._specs[name].slots, False)
                yield self._state(begin_ms, ready_ms, after, state.left), 0

    def _state(
        self, now_ms: int, loader_ms: int, held: dict[str, tuple[tuple[int, ...], bool]], left: frozenset[int]
    ) -> State:
        wanted = {self._asks[at].model for at in left}
        slots = {name: tuple(max(now_ms, ms) for ms in each) for name, (each, _) in held.items()}
        return State(
            now_ms, max(now_ms, loader_ms),
            tuple((name, slots[name], held[name][1] or name not in wanted) for name in sorted(held)), left,
        )  # fmt: skip

    def _victims(self, name: str, held: dict[str, tuple[tuple[int, ...], bool]]) -> Iterator[tuple[str, ...]]:
        """The smallest sets that make room, of models that have served: another load would have been for nothing."""
        found: list[set[str]] = []
        for size in range(len(held) + 1):
            for victims in combinations(held, size):
                if not any(smaller <= set(victims) for smaller in found) and self._fits(name, held.keys() - victims):
                    found.append(set(victims))
                    if all(held[victim][1] for victim in victims):
                        yield victims

    def _fits(self, name: str, staying: set[str]) -> bool:
        names = [name, *staying]
        needed = sum(self._node.models[each].memory_bytes for each in names) + self._node.headroom_bytes(names)
        return needed <= self._node.total_bytes
