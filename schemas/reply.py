"""The one terminal reply of a request: `llm.res.<client>.<rid>`; its headers repeat what its body says."""

from decimal import Decimal
from typing import Any, Literal, Self

from schemas import headers as h
from schemas.base import Message, Wire
from schemas.failure import Error
from schemas.outcome import FinishReason
from schemas.work import AttemptRecord, Usage

Status = Literal["ok", "error", "cancelled"]


class ReplyMessage(Wire):
    """The answer, OpenAI-shaped."""

    role: Literal["assistant"] = "assistant"
    content: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    thinking_blocks: tuple[dict[str, Any], ...] = ()


class Timings(Wire):
    """Milliseconds. `total_ms` runs from the broker's receipt of the request to the reply."""

    queue_ms: float | None = None
    load_ms: float | None = None
    first_token_ms: float | None = None
    generation_ms: float | None = None
    total_ms: float


class Reply(Message):
    """Absent fields are not known; `cost_usd` is never 0 by default."""

    request_id: str
    client: str
    request_hash: str
    status: Status
    message: ReplyMessage | None = None
    embeddings: tuple[str, ...] | None = None
    """In place of a message: a vector for each text to embed, in their order. Each is the base64 of its numbers as
    little-endian float32; `schemas.vectors.unpacked` reads it."""
    finish_reason: FinishReason | None = None
    stop_sequence: str | None = None
    """Which of the request's `stop` ended the answer; absent too where the provider does not say."""
    usage: Usage | None = None
    model: str | None = None
    backend: str | None = None
    node: str | None = None
    provider: str | None = None
    agent_role: str | None = None
    cost_usd: Decimal | None = None
    """Of the answer."""
    wasted_usd: Decimal | None = None
    """Of the attempts that failed, as far as it is known; absent when they cost nothing."""
    timings: Timings
    attempts: tuple[AttemptRecord, ...] = ()
    decision: str | None = None
    policy: int | None = None
    notice: str | None = None
    """What the reader must know, e.g. that no model answered."""
    error: Error | None = None
    traceparent: str | None = None

    def headers(self) -> dict[str, str]:
        """The same facts, for consumers that never parse a body."""
        facts: dict[str, object | None] = {
            h.REQUEST_ID: self.request_id,
            h.REQUEST_HASH: self.request_hash,
            h.CLIENT: self.client,
            h.STATUS: self.status,
            h.ERROR: self.error and self.error.type.value,
            h.MODEL: self.model,
            h.NODE: self.node,
            h.PROVIDER: self.provider,
            h.COST_USD: None if self.cost_usd is None else format(self.cost_usd, "f"),
            h.WASTED_USD: None if self.wasted_usd is None else format(self.wasted_usd, "f"),
            h.LATENCY_MS: _ms(self.timings.total_ms),
            h.QUEUE_MS: _ms(self.timings.queue_ms),
            h.TTFT_MS: _ms(self.timings.first_token_ms),
            h.TOKENS_IN: self.usage and self.usage.tokens_in,
            h.TOKENS_OUT: self.usage and self.usage.tokens_out,
            h.ATTEMPTS: len(self.attempts),
            h.DECISION: self.decision,
            h.POLICY: self.policy,
            h.TRACEPARENT: self.traceparent,
        }
        return {name: str(fact) for name, fact in facts.items() if fact is not None}

    @classmethod
    def refused(
        cls, *, client: str, request_hash: str, error: Error, total_ms: float,
        decision: str | None = None, policy: int | None = None, traceparent: str | None = None,
        attempts: tuple[AttemptRecord, ...] = (), wasted_usd: Decimal | None = None,
    ) -> Self:  # fmt: skip
        """A typed error in place of an answer."""
        return cls(
            request_id=error.request_id,
            client=client,
            request_hash=request_hash,
            status="cancelled" if error.type == "cancelled" else "error",
            wasted_usd=wasted_usd,
            timings=Timings(total_ms=total_ms),
            attempts=attempts,
            decision=decision,
            policy=policy,
            traceparent=traceparent,
            error=error,
        )


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
