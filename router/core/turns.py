"""Whose turn in memory it is: which model comes, which go for it, and what may still start before they go. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from router.core.orders import Wait
from router.core.residency import NodeState, Residency
from router.core.waiting import Waiting
from schemas.heartbeat import WaitReason
from subjects.grammar import URGENCIES, Urgency

HOLDS: tuple[WaitReason, ...] = ("collating", "lingering", "making_room", "changing")
"""The first that applies is told."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A model that is wanted and not in memory."""

    model: Residency
    due_ms: int
    """When its load must have begun."""
    urgency: Urgency
    """Of the most urgent who is past its time; while there is none, of whoever is due first."""
    interactive: bool = True
    """Somebody who waits for it is not batch."""
    by_deadline: bool = False
    """It is due for a deadline, not for its bound."""
    gain: float = 0
    """Requests served per ms of loading and generating."""
    first_ms: int = 0
    """Until its first request would be done."""

    @property
    def name(self) -> str:
        return self.model.spec.name

    def order(self, soon_ms: int) -> tuple[int, float]:
        """By due time those due before another could come and serve one, then by gain, batch last."""
        if self.due_ms <= soon_ms:
            return 0, self.due_ms
        return (1 if self.interactive else 2), -self.gain


@dataclass(slots=True)
class Turn:
    load: Claim | None = None
    victims: Sequence[Residency] = ()
    """Who goes for `load`, all of them free to."""
    following: Claim | None = None
    """The first that must wait, and holds `yielding` back."""
    yielding: Sequence[Residency] = ()
    waits: list[Wait] = field(default_factory=list)
    ask_ms: list[int] = field(default_factory=list)


def turn(node: NodeState, now_ms: int) -> Turn:
    """The first claim, in order, that nobody in memory keeps waiting is loaded; a due one lets no other past it."""
    turn = Turn()
    found = _claims(node, now_ms)
    soon_ms = now_ms + max((claim.first_ms for claim in found), default=0)
    for claim in sorted(found, key=lambda claim: (claim.name != node.coming, claim.order(soon_ms))):
        if claim.model.retry_ms > now_ms:
            turn.waits.append(Wait(claim.name, "load_failed"))
            turn.ask_ms.append(claim.model.retry_ms)
            continue
        turn.ask_ms.append(claim.due_ms)
        victims = _victims(node, claim, now_ms)
        if victims is None:
            turn.waits.append(Wait(claim.name, "memory_taken", *_figures(node, claim, _unpinned(node))))
            continue
        holds = [hold for victim in victims if (hold := _hold(node, victim, claim, now_ms))]
        if not holds and not node.changing and turn.load is None:
            turn.load, turn.victims = claim, victims
            continue
        if turn.following is None:
            turn.following, turn.yielding = claim, victims
        turn.ask_ms += [until_ms for _, until_ms in holds if until_ms is not None]
        reasons: set[WaitReason] = {reason for reason, _ in holds} or {"changing"}
        turn.waits.append(Wait(claim.name, next(reason for reason in HOLDS if reason in reasons)))
        if claim.due_ms <= soon_ms or reasons == {"making_room"}:
            return turn
    return turn


def goes_before(place: Waiting, on: Residency, claim: Claim, now_ms: int, *, fresh: bool) -> bool:
    """Whether a request for a model in memory may start though `claim` needs its room."""
    job, overdue = place.job, place.due_ms <= now_ms
    mine, theirs = URGENCIES.index(job.urgency), URGENCIES.index(claim.urgency)
    if fresh and (overdue or claim.due_ms > now_ms):
        return True  # a load is paid for with one request
    pressing = claim.due_ms <= now_ms + place.generation_ms
    if job.urgency == "batch" and claim.interactive:
        return overdue and not pressing
    if not pressing or (overdue and job.arrived_ms <= on.loaded_ms):
        return True  # when not all bounds can hold, fewer and longer turns serve everybody sooner
    if mine < theirs:
        return claim.due_ms > now_ms
    return mine == theirs and place.due_ms <= claim.due_ms


def _claims(node: NodeState, now_ms: int) -> list[Claim]:
    return [claim for model in node.models.values() if (claim := _claim(node, model, now_ms))]


def _claim(node: NodeState, model: Residency, now_ms: int) -> Claim | None:
    name = model.spec.name
    if model.phase != "absent":
        return None
    if model.spec.pinned:
        return None if node.never_fits(name) else Claim(model, due_ms=0, urgency="critical")
    heads = list(node.queue.heads(name))
    if not heads:
        return None
    first = min(heads)
    overdue = [head for head in heads if head.due_ms <= now_ms]
    lines = node.queue.lines[name]
    urgent = [line for urgency, line in lines.items() if urgency != "batch" and line]
    wanted = urgent or [lines["batch"]]
    work_ms = sum(line.work_ms for line in wanted)
    bound_ms = first.job.arrived_ms + node.rules.bounds_ms[first.job.urgency]
    return Claim(
        model=model,
        due_ms=first.due_ms,
        urgency=(overdue or [first])[0].job.urgency,
        interactive=bool(urgent),
        by_deadline=first.due_ms < bound_ms,
        gain=sum(line.count for line in wanted) / max(1, model.load_ms + work_ms),
        first_ms=model.load_ms + first.generation_ms,
    )


def _hold(node: NodeState, model: Residency, claim: Claim, now_ms: int) -> tuple[WaitReason, int | None] | None:
    """Why `model` cannot go now, and until when if time alone ends it; None: it is free to go."""
    heads = node.queue.heads(model.spec.name)
    if any(goes_before(head, model, claim, now_ms, fresh=model.fresh) for head in heads):
        return "collating", None
    if model.phase == "loading":
        return "changing", None
    if model.running:
        return "making_room", None
    if claim.interactive or claim.due_ms <= now_ms or model.interactive_ms is None:
        return None
    # Somebody talks to it: waiting for the next word costs no more than going and coming back.
    until_ms = model.interactive_ms + model.load_ms + claim.model.load_ms
    return ("lingering", until_ms) if now_ms < until_ms else None


def _victims(node: NodeState, claim: Claim, now_ms: int) -> list[Residency] | None:
    """The fewest that must go for it, free ones and the least recently used first; None: not even all would do."""
    candidates = _unpinned(node)
    candidates.sort(key=lambda model: (_hold(node, model, claim, now_ms) is not None, model.used_ms))
    victims: list[Residency] = []
    while not _fits(node, claim, victims):
        if not candidates:
            return None
        victims.append(candidates.pop(0))
    for spared in reversed(victims.copy()):
        others = [victim for victim in victims if victim is not spared]
        if _fits(node, claim, others):
            victims = others
    return victims


def _unpinned(node: NodeState) -> list[Residency]:
    return [model for model in node.models.values() if model.phase in ("resident", "loading") and not model.spec.pinned]


def _fits(node: NodeState, claim: Claim, victims: Sequence[Residency]) -> bool:
    needed, had = _figures(node, claim, victims)
    return needed <= had


def _figures(node: NodeState, claim: Claim, victims: Sequence[Residency]) -> tuple[int, int]:
    """(needed, had) bytes if these were gone, headroom included."""
    held = [model for model in node.models.values() if model.phase != "absent"]
    going = [model for model in held if model.phase == "unloading" or model in victims]
    staying = [model.spec.name for model in held if model not in going]
    needed = claim.model.memory_bytes + node.headroom_bytes([claim.name, *staying])
    return needed, node.free_bytes + sum(model.memory_bytes for model in going)
