"""What a guardrail is: a pure function from the text of a turn to what it found there."""

from collections.abc import Callable, Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """Where, half-open, in code points."""

    start: int
    end: int


class Match(NamedTuple):
    """One thing found: a code from the guardrail's own closed list, how sure, and where (for redaction)."""

    code: str
    score: float
    span: Span | None = None


Guardrail = Callable[[str], Iterator[Match]]
"""Must be linear in the length of the text and keep no state."""
