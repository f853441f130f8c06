"""What a node must do: everything needed to run an attempt and, coming back in its outcome, to settle it."""

from decimal import Decimal
from typing import Literal

from schemas.base import Message, Wire
from schemas.failure import Failure, FailureKind
from schemas.request import Chat
from subjects.grammar import Urgency


class Target(Wire):
    """One place a request may go: a model on a node."""

    node: str
    model: str
    """The model's name in the policy, a token."""
    backend: str
    """The backend's own name of it, e.g. `qwen3-coder:32b`; travels in payloads only."""
    provider: str
    role: str | None = None
    """What the model is for the agents: architect, coder, ..."""
    first_token_ms: int = 30_000
    """Silence longer than this is a failure."""
    idle_ms: int = 20_000
    """The longest pause within an answer."""
    only_after: FailureKind | None = None
    """A fallback for this failure only."""
    forced: bool | None = None
    """True: to be called even while its breaker is open, for nobody else is left."""


class Usage(Wire):
    """Tokens of one attempt."""

    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens_in: int = 0
    """Of `tokens_in`: read from the provider's cache."""
    cache_write_tokens_in: int = 0
    """Of `tokens_in`: written to the provider's cache."""
    reasoning_tokens_out: int = 0
    """Of `tokens_out`: thinking."""
    estimated: bool = False
    """True when the provider did not say, and the router counted."""


Unpriced = Literal["no_price", "no_usage"]
"""Why a cost is not known."""


class AttemptRecord(Wire):
    """An attempt that has ended, short enough to travel with the ones after it."""

    attempt_id: str
    node: str
    model: str
    provider: str
    failure: Failure | None = None
    usage: Usage | None = None
    cost_usd: Decimal | None = None
    """None when it cannot be known."""
    unpriced: Unpriced | None = None
    prices: str | None = None
    """Where the price was looked up, and when; None: it is the policy's own, or none was needed."""
    total_ms: float = 0


class WorkItem(Message):
    """The body of `llm.work.*`."""

    client: str
    rid: str
    request_hash: str
    request_seq: int
    capability: str
    agent: str | None = None
    task: str | None = None
    urgency: Urgency
    attempt: int
    """From 1; a redelivery of the same attempt gets its own attempt id."""
    target: Target
    fallbacks: tuple[Target, ...] = ()
    chat: Chat
    max_cost_usd: float | None = None
    """What the request may cost at most, failed attempts included."""
    received_ms: int
    """Broker time of the request's receipt, epoch milliseconds."""
    deadline_at_ms: int
    """Broker time at which the request's budget ends."""
    sent_ms: int
    """Broker time at which this work was published."""
    policy: int
    """The policy revision that decided."""
    decision: str
    """The decision in one line, as it will stand in the reply's header."""
    priors: tuple[AttemptRecord, ...] = ()
    traceparent: str | None = None


def attempt_id(attempt: int, delivery: int) -> str:
    """`2.1`: the second attempt, delivered for the first time. Names one execution within its request."""
    return f"{attempt}.{delivery}"
