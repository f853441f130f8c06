"""Server-sent events, written."""

from typing import Any, Final

from pydantic_core import to_json

PING: Final = b": ping\n\n"
"""A comment: every reader passes over it."""


def event(data: Any, *, name: str | None = None, event_id: str | None = None) -> bytes:
    """One event with JSON data."""
    head = (f"event: {name}\n" if name else "") + (f"id: {event_id}\n" if event_id else "")
    return head.encode() + b"data: " + to_json(data) + b"\n\n"


def placed(events: bytes, event_id: str) -> bytes:
    """The last of some events says where they stand: whoever has read it has read them all."""
    before, between, last = events[:-2].rpartition(b"\n\n")
    return before + between + f"id: {event_id}\n".encode() + last + b"\n\n" if events else b""
