"""The names on the wire: every subject is built and parsed here, streams and consumers are data."""

from subjects.grammar import (
    Address,
    Ask,
    Cancel,
    Chunk,
    Dead,
    Event,
    HealthCall,
    Meter,
    NodeCall,
    Open,
    Outcome,
    Reply,
    Request,
    Work,
    parse,
)
from subjects.tokens import InvalidTokenError, is_token, token

__all__ = [
    "Address",
    "Ask",
    "Cancel",
    "Chunk",
    "Dead",
    "Event",
    "HealthCall",
    "InvalidTokenError",
    "Meter",
    "NodeCall",
    "Open",
    "Outcome",
    "Reply",
    "Request",
    "Work",
    "is_token",
    "parse",
    "token",
]
