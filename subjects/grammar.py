"""Every subject of the bus as a frozen value: `str(value)` builds it, `parse` reads it back, both exact inverses.

Ids that are not tokens never reach a subject: building one raises InvalidTokenError, parsing one gives None.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

from subjects.tokens import is_token, token

Urgency = Literal["critical", "high", "normal", "batch"]
URGENCIES: Final[tuple[Urgency, ...]] = get_args(Urgency)
"""Most urgent first."""

NodeVerb = Literal["health", "drain", "resume"]
NODE_VERBS: Final[tuple[NodeVerb, ...]] = get_args(NodeVerb)

EventKind = Literal[
    "accepted",
    "guarded",
    "decided",
    "dispatched",
    "attempt_started",
    "attempt_ended",
    "replied",
    "cancelled",
]
EVENT_KINDS: Final[tuple[EventKind, ...]] = get_args(EventKind)

MeterKind = Literal["requests", "tokens"]
METER_KINDS: Final[tuple[MeterKind, ...]] = get_args(MeterKind)

MAX_CHUNK: Final = 10**12
MAX_MINUTE: Final = 10**12


@dataclass(frozen=True, slots=True)
class Request:
    """`llm.req.<capability>[.<client>]`: a request; the client is there when the broker stamped it."""

    capability: str
    client: str | None = None

    def __str__(self) -> str:
        return _with_client("llm.req", self.capability, self.client)


@dataclass(frozen=True, slots=True)
class Ask:
    """`llm.ask.<capability>[.<client>]`: the synchronous door, captured by no stream."""

    capability: str
    client: str | None = None

    def __str__(self) -> str:
        return _with_client("llm.ask", self.capability, self.client)


@dataclass(frozen=True, slots=True)
class Work:
    """`llm.work.<node>.<model>.<urgency>.<rid>`: what a node must do."""

    node: str
    model: str
    urgency: Urgency
    rid: str

    def __str__(self) -> str:
        if self.urgency not in URGENCIES:
            raise ValueError(f"urgency must be one of {', '.join(URGENCIES)}, not {self.urgency!r}")
        return (
            f"llm.work.{token('node', self.node)}.{token('model', self.model)}.{self.urgency}."
            f"{token('request id', self.rid)}"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """`llm.out.<node>.<rid>`: what became of an attempt."""

    node: str
    rid: str

    def __str__(self) -> str:
        return f"llm.out.{token('node', self.node)}.{token('request id', self.rid)}"


@dataclass(frozen=True, slots=True)
class Reply:
    """`llm.res.<client>.<rid>`: the one terminal reply, write-once."""

    client: str
    rid: str

    def __str__(self) -> str:
        return f"llm.res.{token('client', self.client)}.{token('request id', self.rid)}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """`llm.chunk.<client>.<rid>.<n>`: piece n (from 0) of a streamed answer."""

    client: str
    rid: str
    n: int

    def __str__(self) -> str:
        if not 0 <= self.n < MAX_CHUNK:
            raise ValueError(f"chunk number must be 0 or more and under {MAX_CHUNK}, not {self.n}")
        return f"llm.chunk.{token('client', self.client)}.{token('request id', self.rid)}.{self.n}"


@dataclass(frozen=True, slots=True)
class Event:
    """`llm.evt.<client>.<rid>.<kind>`: one link of the audit chain."""

    client: str
    rid: str
    kind: EventKind

    def __str__(self) -> str:
        if self.kind not in EVENT_KINDS:
            raise ValueError(f"event kind must be one of {', '.join(EVENT_KINDS)}, not {self.kind!r}")
        return f"llm.evt.{token('client', self.client)}.{token('request id', self.rid)}.{self.kind}"


@dataclass(frozen=True, slots=True)
class Cancel:
    """`llm.cancel.<client>.<rid>`: stop this request, in whatever state it is."""

    client: str
    rid: str

    def __str__(self) -> str:
        return f"llm.cancel.{token('client', self.client)}.{token('request id', self.rid)}"


@dataclass(frozen=True, slots=True)
class Meter:
    """`llm.meter.<client>.<kind>.<minute>`: a counter of what a client used in one minute since 1970."""

    client: str
    kind: MeterKind
    minute: int

    def __str__(self) -> str:
        if self.kind not in METER_KINDS:
            raise ValueError(f"kind must be one of {', '.join(METER_KINDS)}, not {self.kind!r}")
        if not 0 <= self.minute < MAX_MINUTE:
            raise ValueError(f"minute must be 0 or more and under {MAX_MINUTE}, not {self.minute}")
        return f"llm.meter.{token('client', self.client)}.{self.kind}.{self.minute}"


@dataclass(frozen=True, slots=True)
class Open:
    """`llm.open.<client>.<rid>`: the place that a request takes while it has no reply, and the money it may cost."""

    client: str
    rid: str

    def __str__(self) -> str:
        return f"llm.open.{token('client', self.client)}.{token('request id', self.rid)}"


@dataclass(frozen=True, slots=True)
class NodeCall:
    """`llm.node.<node>.<verb>`: a running node is asked how it is, or told something; captured by no stream."""

    node: str
    verb: NodeVerb

    def __str__(self) -> str:
        if self.verb not in NODE_VERBS:
            raise ValueError(f"verb must be one of {', '.join(NODE_VERBS)}, not {self.verb!r}")
        return f"llm.node.{token('node', self.node)}.{self.verb}"


@dataclass(frozen=True, slots=True)
class HealthCall:
    """`llm.health`: any router is asked how everything is, itself too; captured by no stream."""

    def __str__(self) -> str:
        return "llm.health"


@dataclass(frozen=True, slots=True)
class Dead:
    """`llm.dead.<reason>`: a message nobody could handle, with why."""

    reason: str

    def __str__(self) -> str:
        return f"llm.dead.{token('reason', self.reason)}"


HEALTH: Final = HealthCall()

Address = Request | Ask | Work | Outcome | Reply | Chunk | Event | Cancel | Meter | Open | NodeCall | HealthCall | Dead


def parse(subject: str) -> Address | None:
    """The value whose `str` is `subject`; None when it is no subject of the bus."""
    if subject == str(HEALTH):
        return HEALTH
    head, _, rest = subject.partition(".")
    kind, _, tail = rest.partition(".")
    read = _READERS.get(kind) if head == "llm" else None
    parts = tail.split(".")
    return read(parts) if read is not None and all(map(is_token, parts)) else None


def _with_client(prefix: str, capability: str, client: str | None) -> str:
    subject = f"{prefix}.{token('capability', capability)}"
    return subject if client is None else f"{subject}.{token('client', client)}"


def _work(parts: list[str]) -> Work | None:
    match parts:
        case [node, model, ("critical" | "high" | "normal" | "batch") as urgency, rid]:
            return Work(node, model, urgency, rid)
    return None


def _chunk(parts: list[str]) -> Chunk | None:
    match parts:
        case [client, rid, n] if _is_number(n, MAX_CHUNK):
            return Chunk(client, rid, int(n))
    return None


def _meter(parts: list[str]) -> Meter | None:
    match parts:
        case [client, ("requests" | "tokens") as kind, minute] if _is_number(minute, MAX_MINUTE):
            return Meter(client, kind, int(minute))
    return None


def _is_number(text: str, below: int) -> bool:
    """In its one spelling."""
    return text.isascii() and text.isdigit() and str(int(text)) == text and int(text) < below


def _event(parts: list[str]) -> Event | None:
    match parts:
        case [client, rid, kind]:
            for known in EVENT_KINDS:
                if kind == known:
                    return Event(client, rid, known)
    return None


def _node_call(parts: list[str]) -> NodeCall | None:
    match parts:
        case [node, ("health" | "drain" | "resume") as verb]:
            return NodeCall(node, verb)
    return None


_READERS: Final[dict[str, Callable[[list[str]], Address | None]]] = {
    "req": lambda p: Request(*p) if len(p) in (1, 2) else None,
    "ask": lambda p: Ask(*p) if len(p) in (1, 2) else None,
    "work": _work,
    "out": lambda p: Outcome(*p) if len(p) == 2 else None,
    "res": lambda p: Reply(*p) if len(p) == 2 else None,
    "chunk": _chunk,
    "evt": _event,
    "cancel": lambda p: Cancel(*p) if len(p) == 2 else None,
    "meter": _meter,
    "open": lambda p: Open(*p) if len(p) == 2 else None,
    "node": _node_call,
    "dead": lambda p: Dead(*p) if len(p) == 1 else None,
}
