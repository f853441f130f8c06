"""What failed calls over HTTP mean: every status, error body and count of tokens is judged once, here."""

import re
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Any, Final

from pydantic_core import from_json, to_json

from router.errors import AttemptError
from schemas.failure import FailureKind
from schemas.work import Usage

MAX_TOKENS: Final = 10_000_000
"""No single call uses more; a count above it is a lie."""
MAX_RETRY_AFTER_MS: Final = 24 * 3600 * 1000

_POLICY = re.compile(
    r"content[_ ]?(filter|policy)|content management policy|responsible_?ai|safety system|moderation|flagged", re.I
)
_TOO_LONG = re.compile(
    r"context[_ ](length|window|size)|maximum context|prompt (is )?too long|input (length|is too long)|too many tokens"
    r"|token count.{0,24} exceeds the maximum",
    re.I,
)
_TOO_LARGE_A_BATCH = re.compile(r"input \(\d+ tokens\) is too large to process", re.I)
"""What llama-server says, with status 500, of a text that does not fit its batch; vectors are made in one."""
_DEAD_KEY = re.compile(
    r"api[_ ]key[_ ](not[_ ]valid|invalid)|(invalid|incorrect)[_ ]api[_ ]key|insufficient_quota|credit balance"
    r"|billing_error|api usage limits|spend_limit|organization_on_hold|organization has been disabled"
    r"|user location is not supported",
    re.I,
)
_NO_ROOM = re.compile(
    r"(more|not enough|insufficient) (system |gpu |free |available )?memory|out of memory"
    r"|(cannot|unable to|failed to|could not) allocate",
    re.I,
)
STATUS_OF: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""By its type, the status that an error amid a stream would have had before it."""
_RETRY_INFO = re.compile(r'"retryDelay":\s{0,8}"(\d{1,9}(?:\.\d{1,9})?)s"')
"""Google's `RetryInfo`, in the details of an error."""


def kind_of(status: int, text: str) -> FailureKind:
    """What a refusal with this status and body is."""
    if 400 <= status < 500 and status not in {401, 402, 429}:
        if _POLICY.search(text):
            return FailureKind.CONTENT_POLICY
        if status == 413 or _TOO_LONG.search(text):
            return FailureKind.CONTEXT_TOO_LONG
    # Some say with 400 that the key is wrong, some with 429 that its money is spent: waiting would not help.
    if status in {401, 402, 403} or (status in {400, 429} and _DEAD_KEY.search(text)):
        return FailureKind.AUTH
    if status == 429:
        return FailureKind.RATE_LIMITED
    if status >= 500 and _NO_ROOM.search(text):
        return FailureKind.INSUFFICIENT_MEMORY
    if status >= 500 and _TOO_LARGE_A_BATCH.search(text):
        return FailureKind.CONTEXT_TOO_LONG
    if status == 501:
        return FailureKind.UNSUPPORTED
    if status in {408, 409, 499} or status >= 500:
        return FailureKind.SERVER_ERROR
    return FailureKind.MALFORMED if status < 300 else FailureKind.BAD_REQUEST


def retry_after_ms(headers: Mapping[str, str], text: str = "") -> int | None:
    """How long the upstream asks to wait: `retry-after-ms`, `Retry-After` in seconds or as a date, or in its error."""
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", 1000)):
        try:
            wait_ms = float(headers.get(name, "")) * unit_ms
        except ValueError:
            wait_ms = _until_ms(headers.get(name), headers.get("date"))
        if wait_ms == wait_ms:  # not NaN
            return int(min(max(wait_ms, 0), MAX_RETRY_AFTER_MS))
    info = _RETRY_INFO.search(text)
    return int(min(float(info[1]) * 1000, MAX_RETRY_AFTER_MS)) if info else None


def _until_ms(date: str | None, server_now: str | None) -> float:
    """From the server's own clock, where it tells it, to a date; NaN when that is none."""
    try:
        until = parsedate_tz(date) if date else None
        now = parsedate_tz(server_now) if server_now else None
        return float("nan") if until is None else (mktime_tz(until) - (mktime_tz(now) if now else time.time())) * 1000
    except (ValueError, OverflowError):
        return float("nan")


def said_in_stream(error: object, *, began: bool) -> AttemptError:
    """What an error amid a stream is, whose status had to be 200."""
    text = error if isinstance(error, str) else to_json(error).decode()
    code, name = (error.get("code"), error.get("type")) if isinstance(error, dict) else (None, None)
    status = code if isinstance(code, int) and 400 <= code < 600 else STATUS_OF.get(str(name))
    if _POLICY.search(text):
        kind = FailureKind.CONTENT_POLICY
    elif status == 413 or _TOO_LONG.search(text):
        kind = FailureKind.CONTEXT_TOO_LONG
    elif began:
        kind = FailureKind.INTERRUPTED
    else:
        kind = kind_of(status, text) if status else FailureKind.SERVER_ERROR
    message = f"the upstream said within its answer: {sentence(text)}"
    return AttemptError.of(kind, message, status=status, retry_after_ms=retry_after_ms({}, text), upstream=text)


def interrupted(message: str) -> AttemptError:
    return AttemptError.of(FailureKind.INTERRUPTED, message)


def malformed(message: str, line: bytes) -> AttemptError:
    return AttemptError.of(FailureKind.MALFORMED, message, upstream=line.decode(errors="replace"))


def usage_of(
    tokens_in: object, tokens_out: object, cached_in: object = 0, reasoning_out: object = 0, cache_write_in: object = 0
) -> Usage | None:
    """The counts when they can be true, else None: an unknown usage is better than a wrong bill."""
    said = (tokens_in, tokens_out, cached_in, reasoning_out, cache_write_in)
    counts = [n for n in said if type(n) is int and 0 <= n <= MAX_TOKENS]
    if len(counts) < len(said):
        return None
    sent, made, cached, thought, written = counts
    if not sent + made:
        return None  # nobody answers a chat with no tokens at all: that server does not count
    cached = min(cached, sent)
    return Usage(
        tokens_in=sent, tokens_out=made, cached_tokens_in=cached, cache_write_tokens_in=min(written, sent - cached),
        reasoning_tokens_out=min(thought, made),
    )  # fmt: skip


def sentence(body: str) -> str:
    """The sentence in an upstream's error, whichever of the usual shapes it has."""
    try:
        value: Any = from_json(body)
    except ValueError:
        value = body
    if isinstance(value, list) and value:
        value = value[0]
    for name in ("error", "message"):
        if isinstance(value, dict) and name in value:
            value = value[name]
    return " ".join((value if isinstance(value, str) else body).split())
