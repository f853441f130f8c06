"""The later links of the audit chain; the first is `schemas.decision.Decided`."""

from decimal import Decimal
from typing import Literal

from schemas.base import Message
from schemas.failure import ErrorType
from schemas.reply import Status
from schemas.work import AttemptRecord, Target

Booking = Literal["billed", "wasted", "unknown"]


class AttemptStarted(Message):
    """`attempt_started`: an executor is about to call."""

    client: str
    rid: str
    attempt_id: str
    target: Target
    provider: str
    started_ms: int
    """Broker time."""


class AttemptEnded(Message):
    """`attempt_ended`: an attempt that did not end the request, and where it goes next."""

    client: str
    rid: str
    attempt: AttemptRecord
    booking: Booking
    next: Target | None = None
    why: str
    """What settling said, e.g. `retry_same`, `next_target`, `superseded`."""


class Cancelled(Message):
    """`cancelled`: its client called it off while it had no reply."""

    client: str
    rid: str
    at_ms: int
    """Broker time at which it was called off."""


class Replied(Message):
    """`replied`: the terminal reply in short. The last one of a request describes the reply that is stored."""

    client: str
    rid: str
    request_hash: str
    status: Status
    error: ErrorType | None = None
    attempt: AttemptRecord | None = None
    """The attempt that decided it."""
    booking: Booking | None = None
    cost_usd: Decimal | None = None
    """Of the answer."""
    total_ms: float
