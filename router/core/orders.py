"""What a node is to do next, as values: every part carries its reason, from closed lists."""

from dataclasses import dataclass
from typing import Literal

from schemas.heartbeat import WaitReason

StartReason = Literal["resident", "before_swap", "overdue_share"]
"""`before_swap`: another model is about to need the room, and this goes first. `overdue_share`: more urgent ones wait,
but it is past its time and it is its turn."""
LoadReason = Literal["pinned", "room"]
UnloadReason = Literal["idle", "batch_yields", "bound", "deadline", "unused"]
"""Why a model goes: nothing waits for it; only batch does; the other's bound or deadline has come; nobody used it."""
RefusalReason = Literal["insufficient_memory", "deadline"]


@dataclass(frozen=True, slots=True)
class Start:
    """Give this request a slot of its model."""

    ticket: int
    model: str
    reason: StartReason


@dataclass(frozen=True, slots=True)
class Load:
    """Bring this model into memory: it fits now."""

    model: str
    reason: LoadReason


@dataclass(frozen=True, slots=True)
class Unload:
    """Let this model go: it generates nothing. `made_room_for` is None when it is merely unused."""

    model: str
    reason: UnloadReason
    made_room_for: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Never to be run here; of memory, what it would need and what there would be, headroom included."""

    ticket: int
    reason: RefusalReason
    needed_bytes: int = 0
    had_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """A model that is wanted and must wait; of memory, what it needs and what there is."""

    model: str
    reason: WaitReason
    needed_bytes: int = 0
    had_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Orders:
    """Everything to be done now, in the order: refusals, unloads, load, starts."""

    starts: tuple[Start, ...] = ()
    load: Load | None = None
    unloads: tuple[Unload, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    waits: tuple[Wait, ...] = ()
    ask_at_ms: int | None = None
    """When time alone may change them; every event may."""

    @property
    def acts(self) -> bool:
        return bool(self.starts or self.load or self.unloads or self.refusals)
