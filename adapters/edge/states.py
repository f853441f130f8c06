"""What a client is told of its requests: how one stands, and the list of all."""

from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.failure import Error
from schemas.reply import Reply
from schemas.work import AttemptRecord

State = Literal["accepted", "waiting", "queued", "running", "ok", "error", "cancelled"]
"""`accepted`: nobody has decided yet who answers; `waiting`: nobody can take it now, or its target asked for patience;
`queued`: it lies on a node; `running`: a model is called. The others are its end."""
ENDED: frozenset[State] = frozenset({"ok", "error", "cancelled"})


class Told(BaseModel):
    model_config = ConfigDict(frozen=True)


class RequestState(Told):
    """How a request stands. What is not known is null."""

    id: str
    state: State
    capability: str | None = None
    received_ms: int | None = Field(default=None, description="When the bus had it, epoch milliseconds.")
    queue_position: int | None = Field(
        default=None, description="Of a queued one: how many of its lane stand before it, those that run included."
    )
    estimate_ms: int | None = Field(default=None, description="About so long until it is answered.")
    decision: str | None = Field(default=None, description="Who answers and why, in one line.")
    attempt: str | None = Field(default=None, description="The one that runs, as it stands in the ids of its events.")
    attempts: tuple[AttemptRecord, ...] = Field(default=(), description="Those that have ended.")
    cost_usd: Decimal | None = Field(default=None, description="Of the answer; null too when it cannot be known.")
    wasted_usd: Decimal | None = Field(default=None, description="Of the attempts that failed.")
    error: Error | None = None
    reply: Reply | None = Field(default=None, description="Kept for a day at least.")


class RequestLine(Told):
    """A request in a list."""

    id: str
    state: State
    capability: str
    received_ms: int
    decision: str | None = None
    cost_usd: Decimal | None = None
    total_ms: float | None = None
    error: str | None = None


class RequestPage(Told):
    """Newest first."""

    data: tuple[RequestLine, ...]
    before: int | None = Field(
        default=None, description="Give it as `before` for the next page; null: this is the last."
    )
