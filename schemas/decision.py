"""What a decision was and why, in words from closed lists: the body of `llm.evt.*.decided`."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Message, Wire
from schemas.failure import ErrorType
from schemas.request import Strategy
from schemas.work import Target
from schemas.world import World
from subjects.grammar import Urgency

PassedOver = Literal[
    "node_unknown",
    "node_silent",
    "node_draining",
    "model_unusable",
    "breaker_open",
    "too_late",
    "context_too_long",
    "too_expensive",
    "tools_unsupported",
    "kind_unsupported",
    "forbidden",
    "overloaded",
]


class Finding(Wire):
    """What one guardrail saw."""

    rule: str
    """The guardrail's name, e.g. `secrets`."""
    code: str
    """What it found, e.g. `aws_access_key`, `ignore_previous`."""
    score: float
    """0 to 1: how sure it is."""
    action: Literal["block", "redact", "flag"]
    """What the policy says to do about it."""


class Candidate(Wire):
    """A place that was considered: its score, or why it was passed over."""

    node: str
    model: str
    score: float | None = None
    passed_over: PassedOver | None = None


class Forward(Wire):
    """Go to `target`; when that fails, to the fallbacks in order."""

    action: Literal["forward"] = "forward"
    target: Target
    fallbacks: tuple[Target, ...] = ()


class Refuse(Wire):
    """The terminal reply is a typed error."""

    action: Literal["refuse"] = "refuse"
    error: ErrorType
    message: str
    retry_after_ms: int | None = None


class Wait(Wire):
    """No place can take it now, but its deadline allows to ask again."""

    action: Literal["wait"] = "wait"
    until_ms: int
    """Broker time at which to decide anew."""


Choice = Annotated[Forward | Refuse | Wait, Field(discriminator="action")]


class Decision(Wire):
    """The outcome of `decide`, with all that explains it."""

    choice: Choice
    stage: Literal["admit", "guardrails", "task", "candidates", "filter", "strategy"]
    """The stage that settled it."""
    task: str | None = None
    route: str | None = None
    """What named the candidates: `model:coder`, `alias:fast`, `agent:npc-ai`, `task:code`, `capability:chat`, ..."""
    strategy: Strategy | None = None
    urgency: Urgency = "normal"
    findings: tuple[Finding, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    def line(self) -> str:
        """One line for headers and tables: `coder@macmini route=task:code strategy=quality`."""
        match self.choice:
            case Forward(target=t):
                head = f"{t.model}@{t.node}"
            case Refuse(error=error):
                head = f"refused:{error.value}"
            case Wait():
                head = "wait"
        parts = (head, self.route and f"route={self.route}", self.strategy and f"strategy={self.strategy}")
        return " ".join(part for part in parts if part)


class Decided(Message):
    """The event that opens a request's audit chain: accepted, guarded, decided and dispatched, in one record.

    Written once per (client, rid) before any work is: it names the first attempt before that can spend.
    """

    client: str
    rid: str
    request_hash: str
    request_seq: int
    capability: str
    agent: str | None = None
    world: World
    decision: Decision
