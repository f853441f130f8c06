"""Work on its way to a node, at once or at a time of its own."""

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Literal

from router.errors import TooLargeError
from router.ports import Bus, Stored
from schemas import headers as h
from schemas.ids import message_id
from schemas.work import WorkItem
from subjects import Work
from subjects.grammar import Urgency
from subjects.streams import ROUTER

OUTCOME_BYTES = 65_536
"""An outcome carries its work back, with what became of it."""


def send_work(bus: Bus, work: WorkItem, *, at_ms: int | None = None, anew: bool = False) -> Awaitable[Stored]:
    """Put an attempt on its node's subject, once, at that broker time if one is given: nobody sleeps on it.

    `anew`: though its message id is taken.

    Raises TooLargeError at once, BusError when awaited.
    """
    subject = str(Work(work.target.node, work.target.model, work.urgency, work.rid))
    body = work.encode()
    if len(body) > bus.max_payload_bytes - OUTCOME_BYTES:
        raise TooLargeError(subject, f"the work has {len(body)} bytes and must leave {OUTCOME_BYTES} to its outcome")
    headers = {h.DEADLINE_AT_MS: str(work.deadline_at_ms)}
    msg_id = message_id("work_anew" if anew else "work", work.client, work.rid, work.attempt)
    if at_ms is None:
        return bus.send(subject, body, headers=headers, msg_id=msg_id)
    headers |= schedule(at_ms, subject)
    return bus.send(put_off("retry", work.urgency, work.request_seq), body, headers=headers, msg_id=msg_id)


def put_off(what: Literal["delay", "retry"], urgency: Urgency, request_seq: int) -> str:
    """Where a request lies that waits to be decided, or its next attempt until its time.

    There is one schedule per subject, and request ids are unique per client only. A router that still holds a request
    which another has decided meanwhile may put it off again: that must not replace an attempt.
    """
    return str(Work(ROUTER, what, urgency, f"seq-{request_seq}"))


def schedule(at_ms: int, target: str) -> dict[str, str]:
    """Headers that let the broker bring a message to `target` at that time."""
    when = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"Nats-Schedule": f"@at {when}", "Nats-Schedule-Target": target}
