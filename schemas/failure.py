"""The closed lists of what can go wrong: once as an upstream's failure, once as the client's typed error.

An attempt fails with a `FailureKind` (what happened there); a request ends with an `ErrorType` (what the client is
told). `router/core/settle.py` is the one place that turns the first into another attempt or into the second.
"""

from enum import StrEnum
from typing import Final, Literal, Self

from schemas.base import Wire


class FailureKind(StrEnum):
    """Why an attempt failed."""

    BAD_REQUEST = "bad_request"
    """400, 404, 422: the upstream understood and refused; another try says the same."""
    CONTENT_POLICY = "content_policy"
    CONTEXT_TOO_LONG = "context_too_long"
    AUTH = "auth"
    """401, 402, 403: that key is dead."""
    RATE_LIMITED = "rate_limited"
    """429."""
    SERVER_ERROR = "server_error"
    """408, 409, 5xx."""
    CONNECTION = "connection"
    """Refused, reset or unreachable before an answer began."""
    SILENCE = "silence"
    """No first byte in time."""
    INTERRUPTED = "interrupted"
    """The answer began and did not end properly."""
    MALFORMED = "malformed"
    """An answer that is not what the dialect allows."""
    TOO_LARGE = "too_large"
    """A good answer, and billed, that no message of the bus can hold."""
    INSUFFICIENT_MEMORY = "insufficient_memory"
    """The backend has no room for the model."""
    BREAKER_OPEN = "breaker_open"
    """Not called: it failed too often of late, and its time to be tried again has not come."""
    UNSUPPORTED = "unsupported"
    """The backend cannot do what the request asks."""
    UNUSABLE = "unusable"
    """The model cannot be used there, whatever is asked; known before the call."""
    NODE_LOST = "node_lost"
    """Its node was heard no more, or drains, before there was an outcome."""
    DEADLINE = "deadline"
    """The request's own time ran out."""
    CANCELLED = "cancelled"
    POISON = "poison"
    """Delivered too often without an outcome: it brings its executor down."""
    INTERNAL = "internal"


class ErrorType(StrEnum):
    """What a client is told; the wire's closed list."""

    BAD_REQUEST = "bad_request"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    NO_ROUTE = "no_route"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate_limited"
    BUDGET_EXCEEDED = "budget_exceeded"
    OVERLOADED = "overloaded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    GUARDRAIL_BLOCKED = "guardrail_blocked"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_INTERRUPTED = "upstream_interrupted"
    ALL_TARGETS_FAILED = "all_targets_failed"
    POISON = "poison"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    INTERNAL = "internal"


RETRYABLE: Final = frozenset(
    {
        ErrorType.RATE_LIMITED,
        ErrorType.OVERLOADED,
        ErrorType.DEADLINE_EXCEEDED,
        ErrorType.UPSTREAM_RATE_LIMITED,
        ErrorType.UPSTREAM_TIMEOUT,
        ErrorType.UPSTREAM_INTERRUPTED,
        ErrorType.ALL_TARGETS_FAILED,
        ErrorType.STORAGE_UNAVAILABLE,
    }
)
"""Errors after which the same request, under a new id, may succeed."""

Spent = Literal["no", "yes", "unknown"]


class Failure(Wire):
    """Why an attempt failed, as its executor saw it."""

    kind: FailureKind
    message: str
    status: int | None = None
    """The upstream's HTTP status."""
    retry_after_ms: int | None = None
    upstream: str | None = None
    """The upstream's own words, passed through."""


class Error(Wire):
    """The typed error of a reply: always names its request and says whether money may have been spent."""

    type: ErrorType
    request_id: str
    message: str
    retryable: bool
    retry_after_ms: int | None = None
    spent: Spent = "no"

    @classmethod
    def of(
        cls, kind: ErrorType, request_id: str, message: str, *, retry_after_ms: int | None = None, spent: Spent = "no"
    ) -> Self:
        """The error of this type; whether it is worth another try follows from that."""
        return cls(
            type=kind, request_id=request_id, message=message, retryable=kind in RETRYABLE,
            retry_after_ms=retry_after_ms, spent=spent,
        )  # fmt: skip
