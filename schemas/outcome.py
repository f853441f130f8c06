"""What became of an attempt: the body of `llm.out.*`, read by the router only."""

from typing import Any, Literal

from schemas.base import Message, Wire
from schemas.failure import Failure
from schemas.work import Usage, WorkItem

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Answer(Wire):
    """What the model said."""

    text: str = ""
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    thinking_blocks: tuple[dict[str, Any], ...] = ()
    """The provider's own record of its thinking, signed where it signs; to be sent back as it is."""
    finish_reason: FinishReason = "stop"
    stop_sequence: str | None = None
    """Which of the request's `stop` ended it, where the provider says so."""
    embeddings: tuple[str, ...] | None = None
    """In place of words: a vector for each text, in their order, as `schemas.vectors` packs them."""
    usage: Usage | None = None
    load_ms: float | None = None
    """Time the backend took to have the model in memory, where it says so."""


class AttemptTimings(Wire):
    """Durations by the executor's monotonic clock."""

    queue_ms: float = 0
    """From the publication of the work to the start of the attempt."""
    load_ms: float | None = None
    first_token_ms: float | None = None
    """From the start of the attempt."""
    total_ms: float = 0


class Outcome(Message):
    """Exactly one of `answer` and `failure` is there."""

    work: WorkItem
    attempt_id: str
    node: str
    provider: str
    """The provider that really ran it: `loopback` where it stood in for the planned one."""
    answer: Answer | None = None
    failure: Failure | None = None
    timings: AttemptTimings
    partial: Usage | None = None
    """What a failed attempt has used as far as it got, estimated."""
    called: bool = True
    """False when no provider was called: nothing can have been spent."""
    stand_in: bool = False
    """True when no model answered: loopback stood in for it."""
