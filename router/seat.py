"""A model on a node: its places, its breaker, who answers for it, and how it has fared of late."""

from dataclasses import dataclass, field

from router.attempt import Served, Tried
from router.breaker import Breaker
from router.lane import Lane
from schemas.heartbeat import ModelState
from subjects.grammar import URGENCIES, Urgency

RECENT = 20
"""Attempts that count for a model's health."""
NEWEST_WEIGHS = 0.2
"""Of an answer's speed in the average."""


@dataclass(slots=True)
class Seat:
    served: Served
    lane: Lane
    breaker: Breaker
    queued: dict[Urgency, int] = field(default_factory=lambda: dict.fromkeys(URGENCIES, 0))
    """What stood behind the last delivery of each urgency, by the broker's count."""
    recent: list[bool] = field(default_factory=list)
    tokens_per_s: float | None = None

    def behind(self, urgency: Urgency) -> int:
        """What waits on the bus: nothing while there is room, for an open pull would have brought it."""
        return self.queued[urgency] if self.lane.room(urgency) <= 0 else 0

    def ended(self, tried: Tried) -> None:
        self.recent = [*self.recent[-RECENT + 1 :], tried.failure is None]
        if not self.served.stand_in and (rate := tried.tokens_per_s):
            before = self.tokens_per_s or rate
            self.tokens_per_s = before + NEWEST_WEIGHS * (rate - before)

    def state(self) -> ModelState:
        served, breaker, ok = self.served, self.breaker, sum(self.recent)
        return ModelState(
            provider=served.provider_name,
            stand_in=served.stand_in,
            slots=self.lane.slots,
            running=self.lane.running,
            waiting=self.lane.waiting + sum(self.behind(urgency) for urgency in URGENCIES),
            ok=ok,
            failed=len(self.recent) - ok,
            tokens_per_s=None if self.tokens_per_s is None else round(self.tokens_per_s, 1),
            usable=served.usable,
            why_not=served.why_not,
            breaker=breaker.state,
            open_until_ms=breaker.open_until_ms,
            last_failure=breaker.last_failure,
        )
