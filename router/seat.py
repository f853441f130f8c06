"""A model on a node: its places, its breaker, who answers for it, and how it has fared of late."""

from dataclasses import dataclass, field

from router.attempt import Served
from router.breaker import Breaker
from router.lane import Lane
from schemas.heartbeat import ModelState
from subjects.grammar import URGENCIES, Urgency

RECENT = 20
"""Attempts that count for a model's health."""


@dataclass(slots=True)
class Seat:
    served: Served
    lane: Lane
    breaker: Breaker
    queued: dict[Urgency, int] = field(default_factory=lambda: dict.fromkeys(URGENCIES, 0))
    """What stood behind the last delivery of each urgency, by the broker's count."""
    recent: list[bool] = field(default_factory=list)

    def behind(self, urgency: Urgency) -> int:
        """What waits on the bus: nothing while there is room, for an open pull would have brought it."""
        return self.queued[urgency] if self.lane.room(urgency) <= 0 else 0

    def ended(self, ok: bool) -> None:
        self.recent = [*self.recent[-RECENT + 1 :], ok]

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
            usable=served.usable,
            why_not=served.why_not,
            breaker=breaker.state,
            open_until_ms=breaker.open_until_ms,
            last_failure=breaker.last_failure,
        )
