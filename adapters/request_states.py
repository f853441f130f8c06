"""How a client's requests stand, read from the streams: `adapters.edge.ports.Requests.state` and `page`.

Whatever there is on the bus, one answer reads so much of it and no more.
"""

import asyncio
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from typing import Final

from pydantic import ValidationError

from adapters.bus import JetStreamBus
from adapters.edge.states import RequestLine, RequestPage, RequestState, State
from router.ports import Letter
from schemas import headers as h
from schemas.decision import Decided
from schemas.event import AttemptEnded, AttemptStarted, Replied
from schemas.heartbeat import Heartbeat
from schemas.reply import Reply
from schemas.work import WorkItem
from subjects import Event, Request, is_token, parse
from subjects import Reply as ReplySubject
from subjects.grammar import EventKind
from subjects.streams import EVENTS, NODES_BUCKET, REPLIES, REQUESTS, ROUTER, WORK

UNDECIDED_LOOKED_AT: Final = 200
"""The newest requests of a client among which one that is not decided yet is looked for."""
EMPTY_PAGES: Final = 8
"""What came again stands in the list once: so many pages that would hold nothing else are passed over at a time."""
TYPICAL_TOKENS_OUT: Final = 500
"""As the router reckons."""


async def state(bus: JetStreamBus, client: str, rid: str) -> RequestState | None:
    """Raises UnavailableError."""
    events, stored = await asyncio.gather(_events(bus, client, rid), bus.last(REPLIES, str(ReplySubject(client, rid))))
    record = next((Decided.decode(letter.data) for kind, letter in events if kind == "decided"), None)
    if stored is not None:
        return _ended(Reply.decode(stored.data), record)
    if record is None:
        return await _undecided(bus, client, rid)
    if replied := next((Replied.decode(letter.data) for kind, letter in reversed(events) if kind == "replied"), None):
        return _kept_no_longer(replied, record)
    return await _open(bus, record, events)


async def page(bus: JetStreamBus, client: str, limit: int, before: int | None) -> RequestPage:
    """Raises UnavailableError."""
    for _ in range(EMPTY_PAGES):
        found = await _page(bus, client, limit, before)
        if found.data or found.before is None:
            break
        before = found.before
    return found


async def _page(bus: JetStreamBus, client: str, limit: int, before: int | None) -> RequestPage:
    letters, older = await newest(bus, client, limit, before)
    asked = {rid: letter for letter in letters if (rid := _rid(letter)) is not None}  # of one that came again the first
    kinds: tuple[EventKind, ...] = ("decided", "attempt_started", "replied")
    lasts, waiting = await asyncio.gather(
        bus.lasts(EVENTS, [str(Event(client, rid, kind)) for rid in asked for kind in kinds]),
        bus.lasts(WORK, [_waiting(letter.seq) for letter in asked.values()]),
    )
    known = {letter.subject: letter.data for letter in lasts}
    waits = {letter.subject.rpartition(".")[2] for letter in waiting}
    lines = [line for rid, letter in asked.items() if (line := _line(client, rid, letter, known, waits))]
    lines.sort(key=lambda line: line.received_ms, reverse=True)
    return RequestPage(data=tuple(lines), before=letters[-1].seq if older else None)


async def newest(bus: JetStreamBus, client: str, limit: int, before: int | None) -> tuple[list[Letter], bool]:
    """A client's newest requests before a sequence, newest first, without their bodies; and whether there are older.

    The stream is read forwards only: where to begin is found by counting, which reads one message each time.
    """
    subject = f"llm.req.*.{client}"
    last = await bus.last(REQUESTS, subject)
    if last is None:
        return [], False
    end = min(last.seq + 1, before or last.seq + 1)
    behind = await bus.count(REQUESTS, subject, end)
    few, many, begin = end, 1, max(1, end - 2 * limit)
    while True:
        there = await bus.count(REQUESTS, subject, begin) - behind
        if there <= limit and begin > 1:
            few = begin
            begin = max(1, end - 4 * (end - begin)) if many == 1 else (many + few) // 2
        elif there > 3 * limit + 1:
            many = begin
            begin = (many + few) // 2
        else:
            break
    found = []
    async for letter in bus.read(REQUESTS, subject, start_seq=begin, batch=max(1, there)):
        if letter.seq >= end:
            break
        found.append(Letter(letter.subject, b"", letter.headers, letter.seq, letter.timestamp_ms))
    found.reverse()
    return found[:limit], len(found) > limit


async def decided(bus: JetStreamBus, client: str, rid: str) -> Decided | None:
    """Of the request whose id it is; None while nothing is decided. Raises UnavailableError."""
    letter = await bus.last(EVENTS, str(Event(client, rid, "decided")))
    return Decided.decode(letter.data) if letter else None


async def _events(bus: JetStreamBus, client: str, rid: str) -> list[tuple[EventKind, Letter]]:
    """Of the newest request under this id."""
    events: list[tuple[EventKind, Letter]] = []
    async for letter in bus.read(EVENTS, f"llm.evt.{client}.{rid}.*"):
        if isinstance(address := parse(letter.subject), Event):
            if address.kind == "decided":
                events.clear()  # after the retention an id is new
            events.append((address.kind, letter))
    return events


def _ended(reply: Reply, decided: Decided | None) -> RequestState:
    return RequestState(
        id=reply.request_id, state=reply.status, capability=decided.capability if decided else None,
        received_ms=decided.world.received_ms if decided else None, decision=reply.decision, attempts=reply.attempts,
        cost_usd=reply.cost_usd, wasted_usd=reply.wasted_usd, error=reply.error, reply=reply,
    )  # fmt: skip


def _kept_no_longer(replied: Replied, decided: Decided) -> RequestState:
    return RequestState(
        id=replied.rid, state=replied.status, capability=decided.capability, received_ms=decided.world.received_ms,
        decision=decided.decision.line(), attempts=(replied.attempt,) if replied.attempt else (),
        cost_usd=replied.cost_usd,
    )  # fmt: skip


async def _undecided(bus: JetStreamBus, client: str, rid: str) -> RequestState | None:
    letters, _ = await newest(bus, client, UNDECIDED_LOOKED_AT, None)
    letter = next((letter for letter in letters if _rid(letter) == rid), None)
    if letter is None:
        return None
    waits = await bus.last(WORK, _waiting(letter.seq)) is not None
    return RequestState(
        id=rid, state="waiting" if waits else "accepted", capability=_capability(letter),
        received_ms=letter.timestamp_ms,
    )  # fmt: skip


async def _open(bus: JetStreamBus, decided: Decided, events: Sequence[tuple[EventKind, Letter]]) -> RequestState:
    """It was decided and has no reply."""
    attempts = [AttemptEnded.decode(letter.data).attempt for kind, letter in events if kind == "attempt_ended"]
    last = next((each for each in reversed(events) if each[0] in ("attempt_started", "attempt_ended")), None)
    started = AttemptStarted.decode(last[1].data) if last is not None and last[0] == "attempt_started" else None
    found = await _work(bus, decided)
    told = RequestState(
        id=decided.rid, state="running" if started else "queued", capability=decided.capability,
        received_ms=decided.world.received_ms, decision=decided.decision.line(), attempts=tuple(attempts),
        attempt=started.attempt_id if started else None,
    )  # fmt: skip
    if found is None:
        return told  # between two steps
    letter, work = found
    if started is not None:
        left_ms = await _estimate_ms(bus, work, 0, bus.now_ms() - started.started_ms)
        return told.model_copy(update={"estimate_ms": left_ms})
    lane = letter.subject.removesuffix(work.rid) + "*"
    if not lane.startswith(f"llm.work.{work.target.node}."):
        return told.model_copy(update={"state": "waiting"})
    ahead = await bus.count(WORK, lane) - await bus.count(WORK, lane, letter.seq)
    estimate_ms = await _estimate_ms(bus, work, ahead, 0)
    return told.model_copy(update={"queue_position": ahead, "estimate_ms": estimate_ms})


async def _work(bus: JetStreamBus, decided: Decided) -> tuple[Letter, WorkItem] | None:
    """What is queued, run or scheduled for it."""
    found = None
    for subject in (f"llm.work.*.*.*.{decided.rid}", f"llm.work.{ROUTER}.retry.*.seq-{decided.request_seq}"):
        async for letter in bus.read(WORK, subject):
            with suppress(ValidationError):
                work = WorkItem.decode(letter.data)
                if (work.client, work.request_seq) == (decided.client, decided.request_seq):
                    found = letter, work
    return found


async def _estimate_ms(bus: JetStreamBus, work: WorkItem, ahead: int, since_ms: int) -> int | None:
    """From what its node last said; None when that is not enough."""
    node, model = work.target.node, work.target.model
    letter = await bus.last(f"KV_{NODES_BUCKET}", f"$KV.{NODES_BUCKET}.{node}")
    seen = Heartbeat.decode(letter.data).models.get(model) if letter and letter.data else None
    if seen is None or not seen.tokens_per_s or seen.in_memory not in (None, "resident"):
        return None
    tokens = min(work.chat.max_tokens or TYPICAL_TOKENS_OUT, TYPICAL_TOKENS_OUT)
    return max(0, round((1 + ahead // max(1, seen.slots)) * tokens * 1000 / seen.tokens_per_s) - since_ms)


def _line(client: str, rid: str, letter: Letter, known: Mapping[str, bytes], waits: Set[str]) -> RequestLine | None:
    """None for one that came again, or met an id that was taken: it stands at its first place, or nowhere."""
    record = known.get(str(Event(client, rid, "decided")))
    decided = Decided.decode(record) if record else None
    if decided is not None and decided.request_seq != letter.seq:
        return None
    end = known.get(str(Event(client, rid, "replied")))
    replied = Replied.decode(end) if end else None
    begun = str(Event(client, rid, "attempt_started")) in known
    return RequestLine(
        id=rid, state=_state(letter, decided, replied, begun=begun, waits=waits),
        capability=_capability(letter) or "", received_ms=letter.timestamp_ms,
        decision=decided.decision.line() if decided else None,
        cost_usd=replied.cost_usd if replied else None, total_ms=replied.total_ms if replied else None,
        error=replied.error.value if replied and replied.error else None,
    )  # fmt: skip


def _state(letter: Letter, decided: Decided | None, replied: Replied | None, *, begun: bool, waits: Set[str]) -> State:
    if replied is not None:
        return replied.status
    if f"seq-{letter.seq}" in waits:
        return "waiting"
    if decided is None:
        return "accepted"
    return "running" if begun else "queued"


def _waiting(seq: int) -> str:
    """Where a request lies that is decided anew, or tried again, later."""
    return f"llm.work.{ROUTER}.*.*.seq-{seq}"


def _rid(letter: Letter) -> str | None:
    """As far as its headers say it."""
    rid = letter.headers.get(h.REQUEST_ID, f"seq-{letter.seq}")
    return rid if is_token(rid) else None


def _capability(letter: Letter) -> str | None:
    address = parse(letter.subject)
    return address.capability if isinstance(address, Request) else None
