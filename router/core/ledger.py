"""What requests have cost, folded from the audit chain. Pure.

Each attempt counts once, however often its events come: billed when it brought the answer, wasted when it did not. What
cannot be known is counted and never taken for 0.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Literal

from router.core.cost import NOTHING, cost_usd, unpriced
from schemas.decision import Decided
from schemas.event import AttemptEnded, AttemptStarted, Replied
from schemas.policy import Policy
from schemas.work import AttemptRecord, Unpriced, Usage

By = Literal["agent", "model", "provider", "task", "client", "day"]
Event = Decided | AttemptStarted | AttemptEnded | Replied
EVENTS: Final[dict[str, type[Event]]] = {
    "decided": Decided,
    "attempt_started": AttemptStarted,
    "attempt_ended": AttemptEnded,
    "replied": Replied,
}
"""What costs are folded from, by the kind in their subject."""
STAND_IN: Final = "loopback"
NO_USAGE: Final = Usage()


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt and for whom it was made; or a request that had none."""

    client: str
    agent: str | None
    task: str
    day: str
    """Of the request's receipt, by UTC."""
    last: bool
    """With this one its request is counted."""
    billed: bool
    attempt: AttemptRecord | None

    def key(self, by: By) -> str | None:
        if by in ("model", "provider"):
            return getattr(self.attempt, by, None)
        value: str | None = getattr(self, by)
        return value

    @property
    def unknown(self) -> Unpriced | None:
        """Why its cost is not known; None when it is."""
        if self.attempt is None or self.attempt.cost_usd is not None:
            return None
        return self.attempt.unpriced or ("no_price" if self.attempt.usage else "no_usage")


@dataclass(frozen=True, slots=True)
class Row:
    """A sum of entries. Costs are of what is known; `*_unknown` attempts come on top."""

    requests: int = 0
    attempts: int = 0
    tokens_in: int = 0
    cached_tokens_in: int = 0
    tokens_out: int = 0
    estimated: int = 0
    """Attempts whose tokens we counted, because the provider did not say."""
    billed_usd: Decimal = NOTHING
    billed_unknown: int = 0
    wasted_usd: Decimal = NOTHING
    wasted_unknown: int = 0

    def __add__(self, other: "Row") -> "Row":
        return Row(*(getattr(self, name) + getattr(other, name) for name in Row.__slots__))

    @classmethod
    def of(cls, entry: Entry) -> "Row":
        attempt, billed = entry.attempt, entry.billed
        if attempt is None:
            return cls(requests=entry.last)
        usage, usd, unknown = attempt.usage or NO_USAGE, attempt.cost_usd or NOTHING, entry.unknown is not None
        return cls(
            requests=entry.last,
            attempts=1,
            tokens_in=usage.tokens_in,
            cached_tokens_in=usage.cached_tokens_in,
            tokens_out=usage.tokens_out,
            estimated=usage.estimated,
            billed_usd=usd if billed else NOTHING,
            billed_unknown=billed and unknown,
            wasted_usd=NOTHING if billed else usd,
            wasted_unknown=unknown and not billed,
        )


@dataclass(slots=True)
class _Life:
    """What is known of one request."""

    seq: int
    asked: tuple[str, str | None, str, str]
    attempts: dict[str, AttemptRecord] = field(default_factory=dict)
    started: dict[str, AttemptRecord] = field(default_factory=dict)
    replied: bool = False
    answered: bool = False
    last: str | None = None
    """The attempt that brought the reply."""

    def entries(self) -> Iterator[Entry]:
        # What was started and never ended was killed, once the request is over; until then it may still run.
        killed = {name: record for name, record in self.started.items() if self.replied and name not in self.attempts}
        attempts = {**self.attempts, **killed}
        last = self.last or next(reversed(attempts), None)
        for name, record in attempts.items():
            yield Entry(*self.asked, last=name == last, billed=self.answered and name == last, attempt=record)
        if last is None:
            yield Entry(*self.asked, last=True, billed=False, attempt=None)


class Ledger:
    """Takes events in the order of their stream.

    `wanted` says which requests count. `policy` tells of attempts that were killed whether they can have cost anything;
    with `reprice`, its prices replace the recorded ones.
    """

    def __init__(
        self, policy: Policy, *, wanted: Callable[[Decided], bool] = lambda _: True, reprice: bool = False
    ) -> None:
        self._policy = policy
        self._wanted = wanted
        self._reprice = reprice
        self._lives: dict[tuple[str, str], _Life] = {}
        self._past: list[_Life] = []

    def add(self, event: Event) -> None:
        """Events of requests whose decision was not seen, or is not wanted, are passed over."""
        if isinstance(event, Decided):
            self._decided(event)
        elif life := self._lives.get((event.client, event.rid)):
            if isinstance(event, AttemptStarted):
                life.started[event.attempt_id] = self._killed(event)
                return
            record = event.attempt
            if record is not None:
                life.attempts[record.attempt_id] = repriced(record, self._policy) if self._reprice else record
            if isinstance(event, Replied):
                life.replied = True
                life.answered = event.status == "ok"
                life.last = record.attempt_id if record else None

    def entries(self) -> Iterator[Entry]:
        for life in (*self._past, *self._lives.values()):
            yield from life.entries()

    def _decided(self, event: Decided) -> None:
        name = event.client, event.rid
        before = self._lives.get(name)
        if before is not None:
            if before.seq == event.request_seq:
                return
            # An id is new again once its reply is forgotten: what follows belongs to another request.
            self._past.append(self._lives.pop(name))
        if self._wanted(event):
            day = datetime.fromtimestamp(event.world.received_ms / 1000, UTC).date().isoformat()
            asked = event.client, event.agent, event.decision.task or event.capability, day
            self._lives[name] = _Life(event.request_seq, asked)

    def _killed(self, event: AttemptStarted) -> AttemptRecord:
        """The record of an attempt of which only the start is known."""
        model = self._policy.models.get(event.target.model)
        free = event.provider != event.target.provider or (model is not None and model.costs_nothing)
        return AttemptRecord(
            attempt_id=event.attempt_id,
            node=event.target.node,
            model=event.target.model,
            provider=event.provider,
            cost_usd=NOTHING if free else None,
            unpriced=None if free else "no_usage",
        )


def repriced(record: AttemptRecord, policy: Policy) -> AttemptRecord:
    """At the prices of `policy`. What was not called, or not a model's answer, stays as it is."""
    model = policy.models.get(record.model)
    stood_in = record.provider == STAND_IN and (model is None or model.provider != STAND_IN)
    if stood_in or (record.usage is None and record.cost_usd is not None):
        return record
    cost = cost_usd(model, record.usage, record.total_ms)
    return record.model_copy(
        update={
            "cost_usd": cost,
            "unpriced": unpriced(model) if cost is None else None,
            "prices": model.price.source if cost and model and model.price else None,
        }
    )


def rows(entries: Iterable[Entry], by: By) -> dict[str | None, Row]:
    """The sums by one thing; under None what has none of it."""
    found: dict[str | None, Row] = {}
    for entry in entries:
        key = entry.key(by)
        found[key] = found.get(key, Row()) + Row.of(entry)
    return found


def unknown(entries: Iterable[Entry]) -> Counter[tuple[Unpriced, str]]:
    """How many attempts have no known cost, by the reason and the model."""
    return Counter((why, entry.attempt.model) for entry in entries if entry.attempt and (why := entry.unknown))
