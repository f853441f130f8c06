"""What a node does next: which requests start, which model is loaded and which go for it. Pure.

A load costs as much as many answers, so memory changes hands rarely, and for a reason:

1. What waiting cannot help is refused: it can never fit, or its deadline has passed.
2. A model in memory serves what waits for it: the most urgent first, then what is due first; one start in four goes to
   somebody overdue.
3. A model that fits beside those in memory is loaded at once, while they generate.
4. One that needs their room waits until nothing of theirs goes before it (`turns.goes_before`). Batch yields to
   everybody. The others yield when its bound or its deadline comes, but for those who are overdue themselves and were
   there when the turn began: when there is more to do than the bounds allow, turns get longer and not more frequent.
5. Of several, the first due comes first; of those due later, the one that serves most for its load; batch last, and
   not into a pause of a conversation.
6. Nothing that generates is unloaded; one change of memory at a time; what was loaded serves one request at least,
   unless somebody else is past his time and none of its own is.

So a request waits for its bound, the answer that is being generated, and one load; longer only behind others who are
past their bounds too, or more urgent. The same state at the same time gives the same orders.
"""

from collections.abc import Iterator

from router.core.orders import Load, Orders, Refusal, Start, StartReason, Unload, UnloadReason
from router.core.residency import NodeState, Residency
from router.core.turns import Claim, Turn, goes_before, turn
from subjects.grammar import URGENCIES


def schedule(node: NodeState, now_ms: int) -> Orders:
    """What is to be done at `now_ms`; after refusals ask again at once."""
    if refusals := tuple(_refusals(node, now_ms)):
        return Orders(refusals=refusals, ask_at_ms=now_ms)
    plan = turn(node, now_ms)
    unloads = tuple(_unloads(node, plan, now_ms))
    load = None
    if plan.load and not unloads:
        load = Load(plan.load.name, "pinned" if plan.load.model.spec.pinned else "room")
    going = {unload.model for unload in unloads}
    starts = tuple(
        start
        for name, model in node.models.items()
        if name not in going
        for start in _starts(node, model, plan.following if model in plan.yielding else None, now_ms)
    )
    return Orders(starts, load, unloads, (), tuple(plan.waits), _ask_at_ms(node, plan, now_ms))


def _refusals(node: NodeState, now_ms: int) -> Iterator[Refusal]:
    hopeless = set()
    for name in node.models:
        if node.queue.waiting(name) and (figures := node.never_fits(name)):
            hopeless.add(name)
            yield from (Refusal(job.ticket, "insufficient_memory", *figures) for job in node.queue.jobs(name))
    yield from (Refusal(job.ticket, "deadline") for job in node.queue.expired(now_ms) if job.model not in hopeless)


def _starts(node: NodeState, model: Residency, claim: Claim | None, now_ms: int) -> Iterator[Start]:
    """As many as there are slots for, but not what `claim`, which needs the room, goes before."""
    lines = node.queue.lines[model.spec.name]
    at = dict.fromkeys(URGENCIES, 0)
    passed, fresh = model.passed, model.fresh
    for _ in range(model.free_slots):
        heads = [line[at[urgency]] for urgency, line in lines.items() if at[urgency] < len(line)]
        heads = [head for head in heads if claim is None or goes_before(head, model, claim, now_ms, fresh=fresh)]
        if not heads:
            return
        chosen, late = heads[0], [head for head in heads[1:] if head.due_ms <= now_ms]
        reason: StartReason = "resident" if claim is None else "before_swap"
        if late and passed + 1 >= node.rules.overdue_share:
            chosen, reason = min(late), "overdue_share"
        passed = passed + 1 if late and reason != "overdue_share" else 0
        fresh = False
        at[chosen.job.urgency] += 1
        yield Start(chosen.ticket, model.spec.name, reason)


def _unloads(node: NodeState, plan: Turn, now_ms: int) -> Iterator[Unload]:
    if plan.load:
        for victim in plan.victims:
            yield Unload(victim.spec.name, _why_unload(node, victim, plan.load), plan.load.name)
    elif not node.changing:
        for name, model in node.models.items():
            if (until_ms := _kept_until_ms(node, model)) is not None and until_ms <= now_ms:
                yield Unload(name, "unused")


def _why_unload(node: NodeState, victim: Residency, claim: Claim) -> UnloadReason:
    name = victim.spec.name
    if not node.queue.waiting(name):
        return "idle"
    if claim.interactive and not any(head.job.urgency != "batch" for head in node.queue.heads(name)):
        return "batch_yields"
    return "deadline" if claim.by_deadline else "bound"


def _kept_until_ms(node: NodeState, model: Residency) -> int | None:
    """When a model that nobody uses goes; None: it stays."""
    if model.phase != "resident" or model.spec.pinned or model.running or node.queue.waiting(model.spec.name):
        return None
    return max(model.used_ms, model.loaded_ms) + node.rules.keep_ms


def _ask_at_ms(node: NodeState, plan: Turn, now_ms: int) -> int | None:
    times = [
        *plan.ask_ms,
        node.queue.next_deadline_ms,
        *(_kept_until_ms(node, model) for model in node.models.values()),
    ]
    return min((time_ms for time_ms in times if time_ms is not None and time_ms > now_ms), default=None)
