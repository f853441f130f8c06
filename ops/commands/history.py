"""Reads from the streams what became of requests; everything `llmbus replay` shows comes from here."""

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from adapters.bus import JetStreamBus
from router.errors import LlmbusError
from router.ports import Letter
from schemas.decision import Decided
from schemas.event import AttemptEnded, AttemptStarted, Replied
from schemas.reply import Reply
from subjects import Event, is_token, parse
from subjects import Reply as ReplySubject
from subjects.streams import EVENTS, REPLIES, REQUESTS

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Link = Decided | AttemptStarted | AttemptEnded | Replied
LINKS: dict[str, type[Link]] = {
    "decided": Decided,
    "attempt_started": AttemptStarted,
    "attempt_ended": AttemptEnded,
    "replied": Replied,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which requests: every part that is given must hold."""

    name: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    subject: str | None = None
    client: str | None = None

    def holds(self, decided: Decided) -> bool:
        asked = datetime.fromtimestamp(decided.world.received_ms / 1000, UTC)
        return (
            (self.since is None or asked >= self.since)
            and (self.until is None or asked <= self.until)
            and (self.subject is None or _matches(self.subject, decided))
        )

    @property
    def pattern(self) -> str:
        """`<client>.<rid>` for subjects, with wildcards."""
        if self.name is not None:
            return pattern(self.name)
        return f"{_token('client', self.client)}.*" if self.client else "*.*"


@dataclass(frozen=True, slots=True)
class Life:
    """One request from its receipt to its reply; `links` are its audit chain with their broker times."""

    client: str
    rid: str
    decided: Decided
    request: Letter | None
    """None when it is kept no longer."""
    links: tuple[tuple[int, Link], ...]
    reply: Reply | None


def moment(text: str | None) -> datetime | None:
    """`15m` ago, or an ISO 8601 time, local when it names no zone. Raises LlmbusError."""
    if text is None:
        return None
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise LlmbusError(f"{text!r} is no time; write 90s, 15m, 2h, 7d, or 2026-07-31T09:00") from None


def pattern(name: str) -> str:
    """`<client>.<rid>` of CLIENT/RID; any client for a bare RID. Raises LlmbusError."""
    client, slash, rid = name.rpartition("/")
    return f"{_token('client', client) if slash else '*'}.{_token('request id', rid)}"


async def whose(bus: JetStreamBus, name: str, otherwise: str) -> tuple[str, str]:
    """Client and id; of a bare RID the client that the record names, and `otherwise` before there is one.

    Raises LlmbusError when several clients have such a request.
    """
    wanted, rid = pattern(name).split(".")
    if wanted != "*":
        return wanted, rid
    clients = set()
    async for letter in bus.read(EVENTS, f"llm.evt.*.{rid}.decided"):
        if isinstance(address := parse(letter.subject), Event):
            clients.add(address.client)
    if len(clients) > 1:
        raise _several(name, (f"{client}/{rid}" for client in sorted(clients)))
    return clients.pop() if clients else otherwise, rid


async def decisions(bus: JetStreamBus, wanted: Wanted) -> AsyncIterator[Decided]:
    """The records of what was decided, oldest first."""
    async for letter in bus.read(EVENTS, f"llm.evt.{wanted.pattern}.decided"):
        decided = Decided.decode(letter.data)
        if wanted.holds(decided):
            yield decided


async def life(bus: JetStreamBus, name: str) -> Life:
    """Raises LlmbusError when there is no such request, or more than one."""
    found = [decided async for decided in decisions(bus, Wanted(name))]
    if not found:
        raise LlmbusError(
            f"no decision about {name} on record: it was never asked, is not decided yet, or is too old; "
            "`llmbus replay` lists the requests there are"
        )
    if len(found) > 1:
        raise _several(name, (f"{decided.client}/{decided.rid}" for decided in found))
    client, rid = found[0].client, found[0].rid
    links = []
    async for letter in bus.read(EVENTS, f"llm.evt.{client}.{rid}.*"):
        address = parse(letter.subject)
        if isinstance(address, Event) and (kind := LINKS.get(address.kind)):
            links.append((letter.timestamp_ms, kind.decode(letter.data)))
    reply = await bus.last(REPLIES, str(ReplySubject(client, rid)))
    return Life(
        client=client,
        rid=rid,
        decided=found[0],
        request=await bus.get(REQUESTS, found[0].request_seq),
        links=tuple(links),
        reply=Reply.decode(reply.data) if reply else None,
    )


async def replies(bus: JetStreamBus, wanted: Wanted) -> dict[tuple[str, str], Replied]:
    """By client and id; the last record of a request is the one that counts."""
    found = {}
    async for letter in bus.read(EVENTS, f"llm.evt.{wanted.pattern}.replied"):
        replied = Replied.decode(letter.data)
        found[replied.client, replied.rid] = replied
    return found


def _several(name: str, found: Iterable[str]) -> LlmbusError:
    return LlmbusError(f"{name} is the id of several requests: {', '.join(found)}; name one of them")


def _matches(subject: str, decided: Decided) -> bool:
    """As NATS would match what it was asked on, with or without the client's stamp."""
    asked = ["llm", "req", decided.capability, decided.client]
    wanted = subject.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1] + asked[len(wanted) - 1 :]
    return len(wanted) in (3, 4) and all(a in ("*", b) for a, b in zip(wanted, asked, strict=False))


def _token(what: str, value: str) -> str:
    if not is_token(value):
        raise LlmbusError(f"{value!r} is no {what}: 1 to 64 of A-Z a-z 0-9 _ -; a request is named RID or CLIENT/RID")
    return value
