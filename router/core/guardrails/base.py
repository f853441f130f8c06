"""What a guardrail is: a pure function from the request's texts to what it found."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Where in which text, half-open, in code points."""

    text: int
    start: int
    end: int


class Match(NamedTuple):
    """One thing found: a code from the guardrail's own closed list, how sure, and where (for redaction)."""

    code: str
    score: float
    span: Span | None = None


Guardrail = Callable[[Sequence[str]], Iterator[Match]]
"""Sees the text of every turn, oldest first. Must be linear in their length and keep no state."""
