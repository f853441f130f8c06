"""What a node says of itself: every second into KV `llm_nodes`, and with its backends when it is asked."""

from typing import Literal

from schemas.base import Message, Wire
from schemas.failure import FailureKind

BreakerState = Literal["closed", "open", "half_open"]
WaitReason = Literal["collating", "lingering", "making_room", "changing", "memory_taken", "load_failed"]
"""Why a model that is wanted is not loaded: those in memory go on with what goes before it; one of them was talked to
a moment ago; they finish what they generate; another is being loaded or unloaded; other programs have the memory; its
last load failed."""


class ModelState(Wire):
    """One model as its node sees it."""

    provider: str
    """The provider that would run it now; `loopback` where it stands in."""
    stand_in: bool = False
    slots: int = 1
    running: int = 0
    waiting: int = 0
    """Its queue: pulled by the node and not started yet, and what the broker holds behind that."""
    ok: int = 0
    """Attempts of the last minutes that gave an answer."""
    failed: int = 0
    tokens_per_s: float | None = None
    """Measured, recent answers weighing most; absent until the model itself has answered."""
    in_memory: Literal["absent", "loading", "resident", "unloading"] | None = None
    """Where the model is; None: its node does not manage that."""
    memory_bytes: int | None = None
    """What it takes there, measured once it was loaded."""
    waits_for: WaitReason | None = None
    """Why it is not loaded though requests wait for it."""
    usable: bool = True
    why_not: str | None = None
    breaker: BreakerState = "closed"
    """`open`: not called until `open_until_ms`; `half_open`: one call finds out whether it is well again."""
    open_until_ms: int | None = None
    """Broker time."""
    last_failure: FailureKind | None = None
    """How the latest attempt that failed did; absent once one has succeeded since."""

    @property
    def health(self) -> float:
        """0 to 1: the share of recent attempts that gave an answer, one success assumed at the start."""
        return (self.ok + 1) / (self.ok + self.failed + 1)


class Host(Wire):
    """The machine under a node; None where it does not say."""

    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    cpus: int | None = None
    load_1m: float | None = None
    """Processes that ran or wanted to, averaged over a minute; `cpus` is as many as it can run."""
    battery_percent: float | None = None
    power: Literal["mains", "battery"] | None = None
    """Where its power comes from; None where there is no battery."""


class Heartbeat(Message, Host):
    """The body of `llm_nodes/<node>`."""

    node: str
    instance: str
    """The executor process; another one after a restart."""
    version: str
    draining: bool = False
    """It takes nothing new and finishes what runs."""
    models: dict[str, ModelState]


class BackendState(Wire):
    """A provider of a node, as the latest look found it."""

    reachable: bool
    why_not: str | None = None
    """And what to do."""


class Health(Heartbeat):
    """The answer to `llm.node.<node>.health`, and to `drain` and `resume` once they are done."""

    status: Literal["ok", "degraded", "down"]
    """Whether all, some or none of its models can be asked; a stand-in counts as none."""
    backends: dict[str, BackendState]
