"""What a run on the virtual node was like: loads, waits by urgency, misses, and who was kept beyond the bound."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from router.core.residency import NodeState
from subjects.grammar import URGENCIES, Urgency
from tests.bench.swap_traces import TOTAL_BYTES
from tests.support.virtual_node import Fate, Run


@dataclass(frozen=True, slots=True)
class Figures:
    """Times in ms."""

    loads: int
    end_ms: int
    p50_ms: dict[Urgency, int]
    p95_ms: dict[Urgency, int]
    interactive_p95_ms: int
    longest_ms: int
    misses: int
    beyond: int
    """Waited longer than their bound and one load, for whatever reason."""
    violations: int
    """And while they did, the node did what could have waited."""


def figures(run: Run) -> Figures:
    waits = {urgency: sorted(f.wait_ms for f in run.served if f.job.urgency == urgency) for urgency in URGENCIES}
    interactive = sorted(fate.wait_ms for fate in run.served if fate.job.urgency != "batch")
    beyond = [fate for fate in run.served if fate.started_ms and fate.started_ms > _allowed_ms(run, fate)]
    return Figures(
        loads=run.loads,
        end_ms=run.end_ms,
        p50_ms={urgency: percentile(each, 0.5) for urgency, each in waits.items()},
        p95_ms={urgency: percentile(each, 0.95) for urgency, each in waits.items()},
        interactive_p95_ms=percentile(interactive, 0.95),
        longest_ms=max((fate.wait_ms for fate in run.served), default=0),
        misses=sum(1 for fate in run.fates.values() if fate.late),
        beyond=len(beyond),
        violations=len(violations(run, beyond)),
    )


def percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0


def _due_ms(run: Run, fate: Fate) -> int:
    return fate.job.arrived_ms + run.rules.bounds_ms[fate.job.urgency]


def _allowed_ms(run: Run, fate: Fate) -> int:
    """Its bound and one load of its model."""
    state = NodeState(run.specs, TOTAL_BYTES)
    return _due_ms(run, fate) + state.models[fate.job.model].load_ms


def violations(run: Run, beyond: Iterable[Fate]) -> list[Fate]:
    """Those kept longer than their bound, one load and the answer that was being generated when their bound came,
    while the node started for the same room what was not past its own bound, nor more urgent.

    More work than a machine can do keeps everybody waiting; nobody may be kept waiting for what could wait as well.
    """
    return [fate for fate in beyond if _outlasted(run, fate) and any(_could_wait(run, fate))]


def _outlasted(run: Run, fate: Fate) -> bool:
    due_ms = _due_ms(run, fate)
    rest_ms = max(
        (other.ended_ms - due_ms for other in run.served if other.ended_ms and (other.started_ms or 0) < due_ms),
        default=0,
    )
    return (fate.started_ms or 0) > _allowed_ms(run, fate) + max(0, rest_ms)


def _could_wait(run: Run, fate: Fate) -> Iterable[bool]:
    due_ms, state = _due_ms(run, fate), NodeState(run.specs, TOTAL_BYTES, rules=run.rules)
    for other in run.served:
        started_ms = other.started_ms or 0
        if due_ms < started_ms < (fate.started_ms or 0) and _same_room(state, fate.job.model, other.job.model):
            urgent = URGENCIES.index(other.job.urgency) < URGENCIES.index(fate.job.urgency)
            overdue = min(_due_ms(run, other), _deadline_due_ms(state, other)) <= started_ms
            yield not (urgent or overdue)


def _deadline_due_ms(state: NodeState, fate: Fate) -> int:
    model = state.models[fate.job.model]
    return fate.job.deadline_ms - model.generation_ms(fate.job.tokens) - model.load_ms


def _same_room(state: NodeState, one: str, other: str) -> bool:
    if one == other:
        return True
    memory = state.models[one].memory_bytes + state.models[other].memory_bytes
    return memory + state.headroom_bytes([one, other]) > state.total_bytes
