"""What waits on a node: a line for each model and urgency, in order of the time by which its turn must come. Pure.

A decision reads heads and totals only, so that it costs the same with ten requests as with ten thousand.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from subjects.grammar import URGENCIES, Urgency


@dataclass(frozen=True, slots=True)
class Job:
    """A request for one model. `ticket` names it once and for all: the sequence of its message."""

    ticket: int
    model: str
    urgency: Urgency
    arrived_ms: int
    deadline_ms: int
    tokens: int
    """That it is expected to generate."""


class Waiting(NamedTuple):
    """A place in a line; sorts by `due_ms`, then by age."""

    due_ms: int
    """When its bound is reached, or the last moment at which a load for it still meets its deadline."""
    ticket: int
    job: Job
    generation_ms: int


class Line:
    """Those of one model and urgency, the earliest due first; of those due together, the oldest."""

    def __init__(self) -> None:
        self._places: list[Waiting] = []
        self._work_ms = 0
        self.behind = 0
        """How many more the bus holds that this node has not taken."""

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: int) -> Waiting:
        return self._places[at]

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._places)

    @property
    def count(self) -> int:
        return len(self._places) + self.behind

    @property
    def work_ms(self) -> int:
        """What all of them will take to generate, one after the other; of those behind, as much as of these."""
        return self._work_ms * self.count // len(self) if self._places else 0

    def add(self, place: Waiting) -> None:
        insort(self._places, place)
        self._work_ms += place.generation_ms

    def remove(self, place: Waiting) -> None:
        del self._places[bisect_left(self._places, place)]
        self._work_ms -= place.generation_ms


class Queue:
    """Every line of a node; a ticket stands in it once at most."""

    def __init__(self, models: Sequence[str]) -> None:
        self.lines = {model: {urgency: Line() for urgency in URGENCIES} for model in models}
        self._places: dict[int, Waiting] = {}
        self._deadlines: list[tuple[int, int]] = []
        """(deadline, ticket)."""

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._places

    def add(self, job: Job, due_ms: int, generation_ms: int) -> None:
        place = self._places[job.ticket] = Waiting(due_ms, job.ticket, job, generation_ms)
        self.lines[job.model][job.urgency].add(place)
        insort(self._deadlines, (job.deadline_ms, job.ticket))

    def remove(self, ticket: int) -> Job | None:
        place = self._places.pop(ticket, None)
        if place is None:
            return None
        job = place.job
        self.lines[job.model][job.urgency].remove(place)
        del self._deadlines[bisect_left(self._deadlines, (job.deadline_ms, ticket))]
        return job

    def waiting(self, model: str) -> bool:
        return any(self.lines[model].values())

    def heads(self, model: str) -> Iterator[Waiting]:
        """The first of each line, the most urgent line first."""
        return (line[0] for line in self.lines[model].values() if line)

    def jobs(self, model: str) -> Iterator[Job]:
        return (place.job for line in self.lines[model].values() for place in line)

    def expired(self, now_ms: int) -> Iterator[Job]:
        """Those whose deadline has passed."""
        for deadline_ms, ticket in self._deadlines:
            if deadline_ms > now_ms:
                return
            yield self._places[ticket].job

    @property
    def next_deadline_ms(self) -> int | None:
        return self._deadlines[0][0] if self._deadlines else None
