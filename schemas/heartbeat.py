"""What a node says of itself, every two seconds, into KV `llm_nodes`."""

from typing import Literal

from schemas.base import Message, Wire
from schemas.failure import FailureKind

BreakerState = Literal["closed", "open", "half_open"]


class ModelState(Wire):
    """One model as its node sees it."""

    provider: str
    """The provider that would run it now; `loopback` where it stands in."""
    stand_in: bool = False
    slots: int = 1
    running: int = 0
    waiting: int = 0
    """Pulled by the node and not started yet."""
    ok: int = 0
    """Attempts of the last minutes that gave an answer."""
    failed: int = 0
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

    @property
    def load(self) -> float:
        """Work per slot; 1 and more means: it would wait."""
        return (self.running + self.waiting) / max(self.slots, 1)


class Heartbeat(Message):
    """The body of `llm_nodes/<node>`."""

    node: str
    instance: str
    """The executor process; another one after a restart."""
    version: str
    draining: bool = False
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    models: dict[str, ModelState]
