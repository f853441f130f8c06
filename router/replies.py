"""The one terminal reply: recorded, then written once; whoever comes second finds out and does no harm."""

from collections.abc import Awaitable

import structlog

from router.errors import ConflictError, UnavailableError
from router.ports import Bus, Rest, Stored
from schemas import headers as h
from schemas.event import AttemptEnded, Booking, Replied
from schemas.failure import FailureKind
from schemas.ids import message_id
from schemas.reply import Reply
from schemas.work import AttemptRecord
from subjects import Event
from subjects import Reply as ReplySubject
from subjects.streams import EVENTS, REPLIES

log = structlog.get_logger(__name__)

NEVER = str(1 << 62)
"""An expected sequence that no subject has: the stream refuses the message, live listeners get it all the same."""


async def write_reply(bus: Bus, reply: Reply) -> None:
    """Make `reply` the terminal reply of its request, unless it has one.

    Raises UnavailableError when neither this nor another reply is stored: the caller must come again.
    """
    await send_reply(bus, reply)()


def send_reply(bus: Bus, reply: Reply, attempt: AttemptRecord | None = None, booking: Booking | None = None) -> Rest:
    """The first part of it: record and reply go out together, the record first."""
    event = _replied(reply, attempt, booking)
    subject = str(ReplySubject(reply.client, reply.request_id))
    event_subject = str(Event(reply.client, reply.request_id, "replied"))
    recorded = bus.send(event_subject, event.encode(), first=True)
    written = bus.send(subject, reply.encode(), headers=reply.headers(), first=True)

    async def rest() -> None:
        new_record = await _stored(recorded)
        if not await _stored(written):
            await _came_second(bus, subject, reply, attempt, booking)
        elif not new_record:
            # A record without its reply: a router died between the two. The last record is the one that counts.
            await bus.publish(event_subject, event.encode())

    return rest


async def tell_again(bus: Bus, subject: str, reply: bytes, headers: dict[str, str]) -> None:
    """Let live listeners hear a reply once more, or hear one that must not be stored here."""
    await bus.tell(subject, reply, headers={**headers, h.EXPECTED_LAST_SUBJECT_SEQUENCE: NEVER})


async def _stored(acknowledgement: Awaitable[Stored]) -> bool:
    try:
        await acknowledgement
    except ConflictError:
        return False
    return True


async def _came_second(
    bus: Bus, subject: str, reply: Reply, attempt: AttemptRecord | None, booking: Booking | None
) -> None:
    """A reply is stored, this one or another: see that the last record describes it, and book what lost."""
    stored = await bus.last(REPLIES, subject)
    if stored is None:
        raise UnavailableError(subject, "the reply stream takes no message and holds no reply")
    first = Reply.decode(stored.data)
    log.info("reply.already_written", client=reply.client, rid=reply.request_id, status=first.status)
    await _see_to_the_record(bus, first)
    if attempt is None or any(_says_more(each, attempt) for each in first.attempts):
        return
    lost = AttemptEnded(
        client=reply.client,
        rid=reply.request_id,
        attempt=attempt,
        booking="wasted" if booking == "billed" else booking or "unknown",
        why="superseded",
    )
    await bus.publish(
        str(Event(reply.client, reply.request_id, "attempt_ended")),
        lost.encode(),
        msg_id=message_id("attempt_ended", reply.client, reply.request_id, attempt.attempt_id),
    )


def _says_more(known: AttemptRecord, late: AttemptRecord) -> bool:
    """The same attempt, unless it was only given up for lost: then its own word tells what it has cost."""
    lost = known.failure is not None and known.failure.kind is FailureKind.NODE_LOST
    return known.attempt_id == late.attempt_id and not lost


async def _see_to_the_record(bus: Bus, stored: Reply) -> None:
    subject = str(Event(stored.client, stored.request_id, "replied"))
    last = await bus.last(EVENTS, subject)
    told = Replied.decode(last.data) if last else None
    if told is not None and (told.status, told.total_ms) == (stored.status, stored.timings.total_ms):
        return
    attempt = stored.attempts[-1] if stored.attempts else None
    booking: Booking | None = None
    if attempt is not None:
        booking = "billed" if stored.status == "ok" else "unknown" if attempt.cost_usd is None else "wasted"
    await bus.publish(subject, _replied(stored, attempt, booking).encode())


def _replied(reply: Reply, attempt: AttemptRecord | None, booking: Booking | None) -> Replied:
    return Replied(
        client=reply.client,
        rid=reply.request_id,
        request_hash=reply.request_hash,
        status=reply.status,
        error=reply.error.type if reply.error else None,
        attempt=attempt,
        booking=booking,
        cost_usd=reply.cost_usd,
        total_ms=reply.timings.total_ms,
    )
