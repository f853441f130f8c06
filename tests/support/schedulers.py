"""What others do with the same node and queue: first come first served, Ollama's own eviction, LRU with collation.

All of them may hold several models side by side as memory allows, with the same headroom; none knows urgency.
Each call gives one order at most; it is called until there is none.
"""

from collections.abc import Callable, Iterable

from router.core.orders import Load, Orders, Start, Unload
from router.core.residency import NodeState, Residency
from router.core.waiting import Job

OLLAMA_KEEP_ALIVE_MS = 300_000

Order = Callable[[Residency], tuple[int | str, ...]]


def fifo(node: NodeState, now_ms: int) -> Orders:
    """In order of arrival, whatever that costs: nobody overtakes."""
    oldest = min(_waiting(node), key=lambda job: job.ticket, default=None)
    if oldest is None:
        return Orders()
    model = node.models[oldest.model]
    if model.free_slots:
        return Orders(starts=(Start(oldest.ticket, oldest.model, "resident"),))
    if model.phase == "resident":
        return Orders()
    return _make_room(node, oldest.model, lambda other: not other.running, lambda other: (other.used_ms,))


def ollama(node: NodeState, now_ms: int) -> Orders:
    """As Ollama does: what is loaded serves at once; loads in order; the idle one with the shortest keep-alive goes."""
    if starts := _collated(node):
        return starts
    for name, model in node.models.items():
        unused_ms = now_ms - max(model.used_ms, model.loaded_ms)
        if model.phase == "resident" and _idle(node, model) and unused_ms >= OLLAMA_KEEP_ALIVE_MS:
            return Orders(unloads=(Unload(name, "unused"),))
    # Every keep-alive is the default, so ties decide: by name.
    return _load_oldest(node, lambda model: (model.spec.name,), one_by_one=True)


def lru(node: NodeState, now_ms: int) -> Orders:
    """What is loaded serves as long as anything waits for it; then the longest unused goes for the oldest."""
    return _collated(node) or _load_oldest(node, lambda model: (model.used_ms,))


def _collated(node: NodeState) -> Orders | None:
    able = [job for job in _waiting(node) if node.models[job.model].free_slots]
    oldest = min(able, key=lambda job: job.ticket, default=None)
    return Orders(starts=(Start(oldest.ticket, oldest.model, "resident"),)) if oldest else None


def _load_oldest(node: NodeState, order: Order, *, one_by_one: bool = False) -> Orders:
    absent = [job for job in _waiting(node) if node.models[job.model].phase == "absent"]
    oldest = min(absent, key=lambda job: job.ticket, default=None)
    if oldest is None:
        return Orders()
    return _make_room(node, oldest.model, lambda other: _idle(node, other), order, one_by_one=one_by_one)


def _make_room(
    node: NodeState, name: str, may_go: Callable[[Residency], bool], order: Order, *, one_by_one: bool = False
) -> Orders:
    """Load it, or unload the first in order; `one_by_one`: whether or not enough others may go as well."""
    if node.changing:
        return Orders()
    held = [model for model in node.models.values() if model.phase == "resident"]
    needed = node.models[name].memory_bytes + node.headroom_bytes([name, *(model.spec.name for model in held)])
    if needed <= node.free_bytes:
        return Orders(load=Load(name, "room"))
    victims = sorted((model for model in held if not model.spec.pinned and may_go(model)), key=order)
    if not victims or not (one_by_one or needed <= node.free_bytes + sum(victim.memory_bytes for victim in victims)):
        return Orders()
    return Orders(unloads=(Unload(victims[0].spec.name, "idle", name),))


def _idle(node: NodeState, model: Residency) -> bool:
    return not model.running and not node.queue.waiting(model.spec.name)


def _waiting(node: NodeState) -> Iterable[Job]:
    return (job for name in node.models for job in node.queue.jobs(name))
