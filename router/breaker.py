"""When a model is not to be called: it failed too often of late. One per model and node, kept where it is called.

    closed     called as usual
    open       not called until `open_until_ms`
    half open  that time has come: one call finds out, the others still stay away

Times are broker time, epoch milliseconds.
"""

from dataclasses import dataclass
from typing import Final, Literal

from schemas.failure import Failure, FailureKind
from schemas.heartbeat import BreakerState

Permit = Literal["call", "probe"]

AT_ONCE: Final = frozenset({FailureKind.SILENCE, FailureKind.AUTH})
"""Another call would lose as much time, or find the same keys dead."""
COUNTED: Final = AT_ONCE | {
    FailureKind.SERVER_ERROR,
    FailureKind.INSUFFICIENT_MEMORY,
    FailureKind.CONNECTION,
    FailureKind.INTERRUPTED,
    FailureKind.MALFORMED,
    FailureKind.RATE_LIMITED,
    FailureKind.INTERNAL,
}
ALIVE: Final = frozenset({FailureKind.BAD_REQUEST, FailureKind.CONTENT_POLICY, FailureKind.CONTEXT_TOO_LONG})
"""It answered, though not with what was wanted."""


@dataclass(slots=True)
class Breaker:
    failures: int
    """So many in a row open it."""
    open_ms: int
    open_until_ms: int | None = None
    last_failure: FailureKind | None = None
    _in_a_row: int = 0
    _probing: bool = False

    @property
    def state(self) -> BreakerState:
        if self.open_until_ms is None:
            return "closed"
        return "half_open" if self._probing else "open"

    def permit(self, now_ms: int, *, forced: bool = False) -> Permit | None:
        """Whether it may be called now; who gets a permit must say how it ended."""
        if self.open_until_ms is None:
            return "call"
        if forced or (now_ms >= self.open_until_ms and not self._probing):
            self._probing = True
            return "probe"
        return None

    def ended(self, permit: Permit, failure: Failure | None, now_ms: int) -> bool:
        """How a permitted call ended; True when the state is another one now."""
        before = (self.open_until_ms, self._probing)
        if permit == "probe":
            self._probing = False
        if failure is None or failure.kind in ALIVE:
            self._well(permit)
        elif failure.kind in COUNTED:
            self._failed(permit, failure, now_ms)
        return before != (self.open_until_ms, self._probing)

    def _well(self, permit: Permit) -> None:
        # A call from before it opened says nothing about now.
        if self.open_until_ms is None or permit == "probe":
            self.open_until_ms = None
            self.last_failure = None
            self._in_a_row = 0

    def _failed(self, permit: Permit, failure: Failure, now_ms: int) -> None:
        self.last_failure = failure.kind
        self._in_a_row += 1
        asked_ms = failure.retry_after_ms or 0
        if permit == "probe" or asked_ms or failure.kind in AT_ONCE or self._in_a_row >= self.failures:
            # What is open already keeps the later end.
            self.open_until_ms = max(self.open_until_ms or 0, now_ms + (asked_ms or self.open_ms))
