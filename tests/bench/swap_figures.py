"""What a run on the virtual node was like: loads, waits by urgency, misses, and who was kept beyond the bound."""

from collections.abc import Sequence
from dataclasses import dataclass

from router.core.residency import NodeState
from subjects.grammar import URGENCIES, Urgency
from tests.bench.swap_traces import TOTAL_BYTES
from tests.support.virtual_node import Fate, Run


@dataclass(frozen=True, slots=True)
class Figures:
    """Of several runs together. Times in ms."""

    requests: int
    loads: int
    end_ms: int
    """The completion time of the whole: the end of the last answer, summed over the runs."""
    p50_ms: dict[Urgency, int]
    p95_ms: dict[Urgency, int]
    interactive_p95_ms: int
    longest_ms: int
    misses: int
    beyond: int
    """Waited longer than their bound and one load, for whatever reason."""
    violations: int
    """And while they did, the node did what could have waited."""


def figures(runs: Sequence[Run]) -> Figures:
    served = [fate for run in runs for fate in run.served]
    waits = {urgency: sorted(fate.wait_ms for fate in served if fate.job.urgency == urgency) for urgency in URGENCIES}
    beyond = [(run, fate) for run in runs for fate in run.served if fate.start_ms > _allowed_ms(run, fate)]
    return Figures(
        requests=sum(len(run.fates) for run in runs),
        loads=sum(run.loads for run in runs),
        end_ms=sum(run.end_ms for run in runs),
        p50_ms={urgency: percentile(each, 0.5) for urgency, each in waits.items()},
        p95_ms={urgency: percentile(each, 0.95) for urgency, each in waits.items()},
        interactive_p95_ms=percentile(sorted(f.wait_ms for f in served if f.job.urgency != "batch"), 0.95),
        longest_ms=max((fate.wait_ms for fate in served), default=0),
        misses=sum(1 for run in runs for fate in run.fates.values() if fate.late),
        beyond=len(beyond),
        violations=sum(kept_waiting(run, fate) for run, fate in beyond),
    )


def percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0


def _due_ms(run: Run, fate: Fate) -> int:
    return fate.job.arrived_ms + run.rules.bounds_ms[fate.job.urgency]


def _allowed_ms(run: Run, fate: Fate) -> int:
    """Its bound and one load of its model."""
    state = NodeState(run.specs, TOTAL_BYTES)
    return _due_ms(run, fate) + state.models[fate.job.model].load_ms


def kept_waiting(run: Run, fate: Fate) -> bool:
    """Whether it waited longer than its bound, one load and the answer that was being generated when its bound came,
    while the node started for the same room what was neither past its own bound nor more urgent.

    More work than a machine can do keeps everybody waiting; nobody may be kept waiting for what could wait as well.
    """
    due_ms = _due_ms(run, fate)
    rest_ms = max((other.end_ms - due_ms for other in run.served if other.start_ms < due_ms), default=0)
    if fate.start_ms <= _allowed_ms(run, fate) + max(0, rest_ms):
        return False
    state = NodeState(run.specs, TOTAL_BYTES)
    return any(
        due_ms < other.start_ms < fate.start_ms
        and _same_room(state, fate.job.model, other.job.model)
        and URGENCIES.index(other.job.urgency) >= URGENCIES.index(fate.job.urgency)
        and other.start_ms < min(_due_ms(run, other), _latest_ms(state, other))
        for other in run.served
    )


def _latest_ms(state: NodeState, fate: Fate) -> int:
    """The last moment for a load that meets its deadline."""
    model = state.models[fate.job.model]
    return fate.job.deadline_ms - model.generation_ms(fate.job.tokens) - model.load_ms


def _same_room(state: NodeState, one: str, other: str) -> bool:
    if one == other:
        return True
    memory = state.models[one].memory_bytes + state.models[other].memory_bytes
    return memory + state.headroom_bytes([one, other]) > state.total_bytes
