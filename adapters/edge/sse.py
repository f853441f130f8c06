"""Server-sent events, written."""

from typing import Any, Final

from pydantic_core import to_json

PING: Final = b": ping\n\n"
"""A comment: every reader passes over it."""


def event(data: Any, *, name: str | None = None, event_id: str | None = None) -> bytes:
    """One event with JSON data."""
    head = (f"event: {name}\n" if name else "") + (f"id: {event_id}\n" if event_id else "")
    return head.encode() + b"data: " + to_json(data) + b"\n\n"
