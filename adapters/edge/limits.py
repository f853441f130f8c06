"""What a client of the edge may still do, from what was counted. Pure: each answers with the refusal, or None."""

from collections.abc import Mapping, Sequence
from decimal import ROUND_FLOOR, Decimal
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from adapters.edge.ports import Submission
from router.errors import RequestFailedError
from schemas.client import ClientLimits
from schemas.failure import ErrorType
from subjects.grammar import MeterKind

MINUTE_MS: Final = 60_000
DAY_MS: Final = 24 * 60 * MINUTE_MS
PLACE_MS: Final = 1_000
"""When to ask again for a place: nobody can know when one will be free."""
MAX_PLACES: Final = 1_024
"""Of one client, should only its money be limited."""
MICRO: Final = Decimal(1_000_000)
KEY_PREFIX: Final = "llmbus_"
MAX_KEY_CHARS: Final = 256
NO_KEY: Final = (
    "no valid key: send one as `Authorization: Bearer llmbus_...` or `x-api-key`; `llmbus key create NAME` makes one"
)
"""The same words whatever was shown."""


def shown_key(headers: Mapping[str, str]) -> str:
    """The key that a request shows, or what stands in its place; empty without any."""
    kind, _, bearer = headers.get("authorization", "").partition(" ")
    shown = (bearer.strip() if kind.lower() == "bearer" else "", headers.get("x-api-key", "").strip())
    # SDKs send what they find in the environment: a key of ours goes before a key of somebody else's.
    return next((text for text in shown if text.startswith(KEY_PREFIX)), shown[0] or shown[1])


def unauthorized(rid: str) -> RequestFailedError:
    return RequestFailedError.of(ErrorType.UNAUTHORIZED, rid, NO_KEY)


def from_elsewhere(headers: Mapping[str, str], rid: str) -> RequestFailedError | None:
    """Whether a page of another site asks, through the browser of somebody on this machine, where no key is needed."""
    origin, host = headers.get("origin", ""), headers.get("host", "")
    page = origin == "null" or (origin.startswith(("http://", "https://")) and not _is_here(origin))
    if not page and (not host or _is_here(f"http://{host}")):
        return None
    return RequestFailedError.of(
        ErrorType.FORBIDDEN, rid, "without a key only this machine itself may ask, by its own name"
    )


def _is_here(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ip_address(name).is_loopback
    except ValueError:
        return False


def forbidden(limits: ClientLimits, asked: Submission) -> RequestFailedError | None:
    """Whether the capability is the client's to use; of models the router sees to it, since it picks them."""
    if limits.capabilities is None or asked.capability in limits.capabilities:
        return None
    words = f"client {asked.client} may use {', '.join(limits.capabilities)}, not {asked.capability}"
    return RequestFailedError.of(ErrorType.FORBIDDEN, asked.rid, words)


def over_the_minute(
    kind: MeterKind, used: int, own: int, limit: int, now_ms: int, asked: Submission
) -> RequestFailedError | None:
    """`used`: in this minute, this request with its `own` included."""
    if used <= limit:
        return None
    if own > limit:
        words = f"client {asked.client} may use {limit} {kind} per minute, and this request alone may come to {own}"
        return RequestFailedError.of(ErrorType.RATE_LIMITED, asked.rid, words)
    wait_ms = MINUTE_MS - now_ms % MINUTE_MS
    words = (
        f"client {asked.client} may use {limit} {kind} per minute; the next minute begins in {-(-wait_ms // 1000)} s"
    )
    return RequestFailedError.of(ErrorType.RATE_LIMITED, asked.rid, words, retry_after_ms=wait_ms)


def places(limits: ClientLimits) -> int:
    """How many requests may be under way, where that is counted."""
    return MAX_PLACES if limits.concurrent is None else min(limits.concurrent, MAX_PLACES)


def too_many(limit: int, before: int, asked: Submission) -> RequestFailedError | None:
    """`before`: so many of the client's requests came before this one and have no reply."""
    if before < limit:
        return None
    words = f"client {asked.client} may have {limit} requests under way, and has"
    return RequestFailedError.of(ErrorType.RATE_LIMITED, asked.rid, words, retry_after_ms=PLACE_MS)


def micro_usd(usd: Decimal) -> int:
    """Millionths of a dollar, always more than `usd` when that is more than nothing."""
    return int((usd * MICRO).to_integral_value(ROUND_FLOOR)) + 1 if usd else 0


def budget(per_day: Decimal, spent: Decimal, before: Sequence[int], wanted: int) -> Decimal:
    """What a request may cost, in dollars: what it wants, as far as the day's money reaches.

    `before`: what those want that came before it and have no reply, as `wanted` in millionths.
    """
    left = int(((per_day - spent) * MICRO).to_integral_value(ROUND_FLOOR)) - sum(before)
    return Decimal(max(0, min(left, wanted))) / MICRO
