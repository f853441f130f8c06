"""How the whole bus is, in one answer: to `llm.health`, to `GET /health` of the HTTP edge, and to `llmbus health`."""

from typing import Literal

from pydantic import Field

from schemas.base import Message, Wire
from schemas.heartbeat import BackendState, Heartbeat


class BusHealth(Wire):
    """The broker, as seen from who asks."""

    up: bool
    """Connected, and its JetStream answers."""
    why_not: str | None = None
    answered_ms: float | None = None
    """What JetStream took for a word."""


class NodeHealth(Heartbeat):
    """One node of the policy: what it answers, or what it last said; of one that is away nothing but its name."""

    instance: str = ""
    version: str = ""
    status: Literal["ok", "degraded", "down", "away"]
    """Whether all, some or none of its models can be asked; a stand-in counts as none. `away`: it is not heard."""
    why_not: str | None = None
    heard_ms_ago: int | None = None
    """Since its last heartbeat; None: none was heard."""
    backends: dict[str, BackendState] = Field(default_factory=dict)
    """Empty when it did not answer."""

    @property
    def takes_work(self) -> bool:
        """Whether it answers requests, with a stand-in too."""
        usable = any(model.usable for model in self.models.values())
        return usable and self.status != "away" and not self.draining


class FleetHealth(Message):
    """Everything, even when one of them is down."""

    status: Literal["ok", "degraded", "down"]
    """`down`: nothing can be answered. `degraded`: something can, and `why_not` says what is not well."""
    why_not: tuple[str, ...] = ()
    as_of_ms: int | None = None
    """Broker time; None: its clock was never read."""
    bus: BusHealth
    routers: int = 0
    """How many answered."""
    nodes: dict[str, NodeHealth]
