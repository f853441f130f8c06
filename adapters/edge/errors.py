"""Typed errors in the words of the caller's dialect, and their HTTP statuses."""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from adapters.edge.door import Shape
from schemas.failure import Error, ErrorType, Failure, FailureKind
from schemas.policy import Policy
from schemas.reply import Reply

STATUS: Final[Mapping[ErrorType, int]] = {
    ErrorType.BAD_REQUEST: 400,
    ErrorType.PAYLOAD_TOO_LARGE: 413,
    ErrorType.NO_ROUTE: 404,
    ErrorType.UNAUTHORIZED: 401,
    ErrorType.FORBIDDEN: 403,
    ErrorType.RATE_LIMITED: 429,
    ErrorType.BUDGET_EXCEEDED: 402,
    ErrorType.OVERLOADED: 503,
    ErrorType.DEADLINE_EXCEEDED: 504,
    ErrorType.CANCELLED: 499,
    ErrorType.GUARDRAIL_BLOCKED: 400,
    ErrorType.UPSTREAM_ERROR: 502,
    ErrorType.UPSTREAM_RATE_LIMITED: 429,
    ErrorType.UPSTREAM_TIMEOUT: 504,
    ErrorType.UPSTREAM_INTERRUPTED: 502,
    ErrorType.ALL_TARGETS_FAILED: 502,
    ErrorType.POISON: 500,
    ErrorType.STORAGE_UNAVAILABLE: 503,
    ErrorType.IDEMPOTENCY_CONFLICT: 409,
    ErrorType.INTERNAL: 500,
}
ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    499: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
OPENAI_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
SHOWN_ERRORS: Final = 3
JSON: Final = "application/json"
_FIELD = re.compile(r"(?!body:)([a-z_]\w*(?:\.\w+)*): ")
_TOO_LONG = ("prompt is too long: ", "input length and `max_tokens` exceed context limit: ")
_UNKNOWN = re.compile(r"unknown (model|capability) ")


def error_body(error: Error, status: int, shape: Shape) -> dict[str, Any]:
    """What the error is called in that dialect; each holds the whole typed error too."""
    whole = error.model_dump(mode="json", exclude_none=True)
    match shape:
        case "openai":
            param = _param(error)
            too_long = error.type is ErrorType.BAD_REQUEST and error.message.startswith(_TOO_LONG)
            unknown = error.type is ErrorType.NO_ROUTE and param == "model"
            code = "model_not_found" if unknown else "context_length_exceeded" if too_long else error.type.value
            kind = OPENAI_TYPES.get(status, "server_error")
            return {"error": {"message": error.message, "type": kind, "param": param, "code": code, "llm": whole}}
        case "anthropic":
            kind = ANTHROPIC_TYPES.get(status, "api_error")
            said = {"type": kind, "message": error.message, "llm": whole}
            return {"type": "error", "error": said, "request_id": error.request_id}
        case "native":
            return {"error": whole}


def _param(error: Error) -> str | None:
    """The field that an error is about, as `messages[0].role`; its message begins with it."""
    said = {ErrorType.BAD_REQUEST: _FIELD, ErrorType.NO_ROUTE: _UNKNOWN}.get(error.type)
    found = said and said.match(error.message)
    return re.sub(r"\.(\d+)", r"[\1]", found[1]) if found else None


def upstreams_own(reply: Reply, shape: Shape, policy: Policy) -> tuple[int, bytes] | None:
    """An upstream's refusal as it came, status and body, when it speaks the caller's dialect, and a context that is too
    long in the words that Anthropic has for it: some clients recover by the wording. None for any other error."""
    attempt = reply.attempts[-1] if reply.attempts else None
    failure: Failure | None = attempt.failure if attempt else None
    provider = policy.providers.get(attempt.provider) if attempt else None
    if failure is None or provider is None:
        return None
    if provider.dialect != shape:
        return _too_long(reply, failure, shape)
    if failure.upstream is None or not 400 <= (failure.status or 0) < 500 or failure.status in {401, 402, 403}:
        return None
    try:
        body = from_json(failure.upstream)
    except ValueError:
        return None
    return (failure.status or 400, failure.upstream.encode()) if isinstance(body, dict) and "error" in body else None


def _too_long(reply: Reply, failure: Failure, shape: Shape) -> tuple[int, bytes] | None:
    if failure.kind is not FailureKind.CONTEXT_TOO_LONG or reply.error is None:
        return None
    error = reply.error.model_copy(update={"message": f"{_TOO_LONG[0]}{failure.message}"})
    return 400, to_json(error_body(error, 400, shape))


def explained(error: ValueError) -> str:
    """What is wrong where, without repeating what was sent: it may be secret."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"{_path(e['loc']) or 'body'}: {e['msg'].removeprefix('Value error, ')}" for e in found[:SHOWN_ERRORS]]
    more = f" (and {len(found) - SHOWN_ERRORS} more)" if len(found) > SHOWN_ERRORS else ""
    return "; ".join(lines) + more


def _path(place: tuple[int | str, ...]) -> str:
    """Without what pydantic calls the members of a union."""
    return ".".join(str(step) for step in place if step not in ("str", "float", "int") and "[" not in str(step))
