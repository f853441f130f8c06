"""The streams, buckets and durable consumers of the bus, as data; `adapters/bus/provision.py` makes them real.

Times are seconds, sizes bytes. From `deny_change` streams, the record, no message can be deleted.
"""

from dataclasses import dataclass
from typing import Final, Literal

from subjects.grammar import Urgency
from subjects.tokens import token

MINUTE: Final = 60
DAY: Final = 24 * 60 * MINUTE
MIB: Final = 1 << 20
GIB: Final = 1 << 30

REQUESTS: Final = "LLM_REQUESTS"
WORK: Final = "LLM_WORK"
OUTCOMES: Final = "LLM_OUTCOMES"
REPLIES: Final = "LLM_REPLIES"
CHUNKS: Final = "LLM_CHUNKS"
EVENTS: Final = "LLM_EVENTS"
CANCELS: Final = "LLM_CANCELS"
DEAD: Final = "LLM_DEAD"
METERS: Final = "LLM_METERS"
OPEN: Final = "LLM_OPEN"

NODES_BUCKET: Final = "llm_nodes"
POLICY_BUCKET: Final = "llm_policy"
KEYS_BUCKET: Final = "llm_keys"

ROUTER: Final = "router"
"""The reserved node name of requests that wait: work addressed to it is decided anew."""


@dataclass(frozen=True, slots=True)
class StreamSpec:
    name: str
    subjects: tuple[str, ...]
    about: str
    max_bytes: int
    """-1: no limit of its own."""
    max_age_s: float = 0
    storage: Literal["file", "memory"] = "file"
    retention: Literal["limits", "workqueue"] = "limits"
    discard: Literal["new", "old"] = "new"
    duplicate_window_s: float = 2 * MINUTE
    write_once: bool = False
    deny_change: bool = False
    schedules: bool = False
    counters: bool = False
    """Each subject holds a sum."""
    ttls: bool = False
    """A message may say itself how long it lives."""
    max_msg_bytes: int = 8 * MIB


@dataclass(frozen=True, slots=True)
class BucketSpec:
    name: str
    about: str
    history: int
    ttl_s: float = 0
    max_bytes: int = 64 * MIB


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable pull consumer with explicit acknowledgement, shared by every replica that names it."""

    stream: str
    name: str
    filter_subject: str
    ack_wait_s: float = 6
    max_ack_pending: int = 4096


REPLY_RETENTION_S: Final = DAY
"""How long a reply can be fetched at least, and its work is not published twice."""

ID_TAKEN_S: Final = REPLY_RETENTION_S + 30 * MINUTE
"""How long a request id stays taken: until the broker has forgotten its work for sure, and its reply may be gone."""

STREAMS: Final[tuple[StreamSpec, ...]] = (
    # Message ids are unique per stream, and clients choose theirs: a long window would swallow the request of another
    # client. Doubles are known by their write-once decision instead.
    StreamSpec(
        REQUESTS, ("llm.req.*", "llm.req.*.*"), "requests", 2 * GIB, 30 * DAY, duplicate_window_s=0.1,
        deny_change=True,
    ),
    # The server refuses schedules beside `discard new`. Without limits `old` discards nothing: the store's own limit
    # refuses what is too much, and the router bounds what waits for each node.
    StreamSpec(
        WORK, ("llm.work.>",), "what nodes must do", -1, retention="workqueue", discard="old",
        duplicate_window_s=REPLY_RETENTION_S, schedules=True,
    ),
    StreamSpec(
        OUTCOMES, ("llm.out.>",), "what became of attempts", 512 * MIB, retention="workqueue",
        duplicate_window_s=60 * MINUTE,
    ),
    StreamSpec(
        REPLIES, ("llm.res.*.*",), "terminal replies", 2 * GIB, ID_TAKEN_S + 30 * MINUTE, write_once=True,
        deny_change=True,
    ),
    StreamSpec(CHUNKS, ("llm.chunk.*.*.*",), "pieces of streamed answers", 128 * MIB, 10 * MINUTE, "memory",
        discard="old"),
    StreamSpec(
        EVENTS, ("llm.evt.*.*.*",), "the audit chain", 4 * GIB, 30 * DAY, duplicate_window_s=60 * MINUTE,
        deny_change=True,
    ),
    StreamSpec(CANCELS, ("llm.cancel.*.*",), "cancellations", 16 * MIB, 30 * MINUTE, discard="old"),
    StreamSpec(DEAD, ("llm.dead.*",), "poison and unparseable messages", 256 * MIB, 30 * DAY, discard="old"),
    # What these two hold is worth nothing after a restart of the broker: minutes pass, and whoever waited asks again.
    StreamSpec(
        METERS, ("llm.meter.*.*.*",), "what clients used, by the minute", 16 * MIB, 5 * MINUTE, "memory",
        discard="old", counters=True,
    ),
    StreamSpec(
        OPEN, ("llm.open.*.*",), "requests of limited clients that have no reply", 64 * MIB, 60 * MINUTE, "memory",
        write_once=True, ttls=True,
    ),
)  # fmt: skip

BUCKETS: Final[tuple[BucketSpec, ...]] = (
    BucketSpec(NODES_BUCKET, "heartbeats of the nodes", history=1, ttl_s=15),
    BucketSpec(POLICY_BUCKET, "the policy, every revision", history=64),
    BucketSpec(KEYS_BUCKET, "clients of the HTTP edge: digests of their keys, and their limits", history=1),
)

DISPATCHER: Final = ConsumerSpec(REQUESTS, "router", "llm.req.>")
WAITERS: Final = ConsumerSpec(WORK, "router", f"llm.work.{ROUTER}.decide.>")
CANCELLER: Final = ConsumerSpec(CANCELS, "router", "llm.cancel.>")
SETTLER: Final = ConsumerSpec(OUTCOMES, "router", "llm.out.>")


def work_consumer(node: str, model: str, urgency: Urgency) -> ConsumerSpec:
    """The lane of one model on one node at one urgency; lanes of a work queue must not overlap."""
    # "=" cannot stand in a token, so no two lanes share a name.
    name = f"{token('node', node)}={token('model', model)}={urgency}"
    return ConsumerSpec(WORK, name, f"llm.work.{node}.{model}.{urgency}.*", max_ack_pending=1024)
