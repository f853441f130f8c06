"""A model on a node: its places, its breaker, who answers for it, and how it has fared of late."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from router.attempt import Served, Tried
from router.breaker import Breaker
from router.core.waiting import Job
from router.lane import Lane
from router.scheduler import Scheduler
from schemas.heartbeat import ModelState
from subjects.grammar import URGENCIES, Urgency

RECENT = 20
"""Attempts that count for a model's health."""
AHEAD = 2
"""More than it could hold next: a line that runs dry while the next is on its way would look like nothing to do."""
NEWEST_WEIGHS = 0.2
"""Of an answer's speed in the average."""


@dataclass(slots=True)
class Seat:
    served: Served
    lane: Lane
    breaker: Breaker
    model: str = ""
    scheduler: Scheduler | None = None
    """Who gives the places of a model that comes and goes in this machine's memory; None: it is not ours to manage."""
    queued: dict[Urgency, int] = field(default_factory=lambda: dict.fromkeys(URGENCIES, 0))
    """What stood behind the last delivery of each urgency, by the broker's count."""
    recent: list[bool] = field(default_factory=list)
    tokens_per_s: float | None = None

    @property
    def managed(self) -> Scheduler | None:
        """The scheduler, unless loopback stands in, which needs no memory."""
        return None if self.served.stand_in else self.scheduler

    def room(self, urgency: Urgency) -> int:
        """How many more of this urgency the node may take."""
        if (scheduler := self.managed) is not None:
            return scheduler.state.room(self.model, urgency) + AHEAD
        return self.lane.room(urgency)

    def place(self, job: Job, *, patient: bool) -> AbstractAsyncContextManager[None]:
        """Wait for a place, then hold it. Raises AttemptError when there can be none; not `patient`: or none soon."""
        if (scheduler := self.managed) is not None:
            return scheduler.place(job, patient=patient)
        return self.lane.place(job.urgency, job.ticket)

    def stands_behind(self, urgency: Urgency, count: int) -> None:
        """So many more stood behind the latest delivery, by the broker's count."""
        self.queued[urgency] = count
        if (scheduler := self.managed) is not None:
            scheduler.behind(self.model, urgency, count)

    def behind(self, urgency: Urgency) -> int:
        """What waits on the bus: nothing while there is room, for an open pull would have brought it."""
        return self.queued[urgency] if self.room(urgency) <= 0 else 0

    def ended(self, tried: Tried) -> None:
        self.recent = [*self.recent[-RECENT + 1 :], tried.failure is None]
        if (scheduler := self.managed) is not None:
            scheduler.heard(self.model, tried.failure)
        if not self.served.stand_in and (rate := tried.tokens_per_s):
            before = self.tokens_per_s or rate
            self.tokens_per_s = before + NEWEST_WEIGHS * (rate - before)

    def state(self) -> ModelState:
        served, breaker, ok = self.served, self.breaker, sum(self.recent)
        running, waiting = self.lane.running, self.lane.waiting
        held = None
        if (scheduler := self.managed) is not None:
            held = scheduler.state.models[self.model]
            running += len(held.running)
            waiting += sum(len(line) for line in scheduler.state.queue.lines[self.model].values())
        return ModelState(
            provider=served.provider_name,
            stand_in=served.stand_in,
            slots=self.lane.slots,
            running=running,
            waiting=waiting + sum(self.behind(urgency) for urgency in URGENCIES),
            in_memory=held.phase if held else None,
            memory_bytes=held.memory_bytes if held else None,
            waits_for=scheduler.waits.get(self.model) if scheduler else None,
            ok=ok,
            failed=len(self.recent) - ok,
            tokens_per_s=None if self.tokens_per_s is None else round(self.tokens_per_s, 1),
            usable=served.usable,
            why_not=served.why_not,
            breaker=breaker.state,
            open_until_ms=breaker.open_until_ms,
            last_failure=breaker.last_failure,
        )
