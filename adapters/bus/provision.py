"""Streams, buckets and consumers made real: created, or updated where NATS allows it; data is never deleted.

Running it again changes nothing. What exists and cannot be changed in place is refused with what differs.
"""

import asyncio
import json
from datetime import datetime

import nats.errors
from nats.aio.client import Client

from router.errors import LlmbusError
from subjects.streams import BUCKETS, STREAMS, BucketSpec, ConsumerSpec, StreamSpec

API_TIMEOUT_S = 10.0
NANO = 10**9
NOT_FOUND = frozenset({10014, 10059})

Config = dict[str, object]


class ProvisionError(LlmbusError):
    """A stream or consumer that cannot be made what it must be."""

    def __init__(self, name: str, why: str, remedy: str) -> None:
        self.name = name
        super().__init__(f"{name}: {why}\n  remedy: {remedy}")


async def provision(client: Client) -> None:
    """All streams and buckets; consumers are made by who consumes. Raises ProvisionError."""
    await asyncio.gather(
        *(_ensure_stream(client, stream_config(spec)) for spec in STREAMS),
        *(_ensure_stream(client, bucket_config(spec)) for spec in BUCKETS),
    )


async def provision_memory(client: Client) -> None:
    """The streams that a broker forgets when it restarts, its word for them included. Raises ProvisionError."""
    for spec in STREAMS:
        if spec.storage == "memory":
            await _ensure_stream(client, stream_config(spec))


async def ensure_consumer(client: Client, spec: ConsumerSpec) -> None:
    """Create the durable consumer, or bring it to what `spec` says."""
    answer = await _ask(
        client,
        f"CONSUMER.CREATE.{spec.stream}.{spec.name}.{spec.filter_subject}",
        {"stream_name": spec.stream, "config": consumer_config(spec)},
    )
    if error := answer.get("error"):
        raise ProvisionError(f"consumer {spec.stream}/{spec.name}", _words(error), _remedy(error))


def stream_config(spec: StreamSpec) -> Config:
    return {
        "name": spec.name,
        "description": f"llmbus: {spec.about}",
        "subjects": list(spec.subjects),
        "storage": spec.storage,
        "retention": spec.retention,
        "discard": spec.discard,
        "max_age": int(spec.max_age_s * NANO),
        "max_bytes": spec.max_bytes,
        "max_msg_size": spec.max_msg_bytes,
        "duplicate_window": int(spec.duplicate_window_s * NANO),
        "max_msgs_per_subject": 1 if spec.write_once or spec.counters else -1,
        "discard_new_per_subject": spec.write_once,
        "deny_delete": spec.deny_change,
        "deny_purge": spec.deny_change,
        "allow_direct": True,
        "allow_msg_schedules": spec.schedules,
        "allow_msg_counter": spec.counters,
        "allow_msg_ttl": spec.ttls,
        "num_replicas": 1,
    }


def bucket_config(spec: BucketSpec) -> Config:
    """A key-value bucket is a stream with these settings (NATS ADR-8)."""
    return {
        "name": f"KV_{spec.name}",
        "description": f"llmbus: {spec.about}",
        "subjects": [f"$KV.{spec.name}.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": spec.history,
        "max_age": int(spec.ttl_s * NANO),
        "max_bytes": spec.max_bytes,
        "duplicate_window": int(min(120, spec.ttl_s or 120) * NANO),
        "deny_delete": True,
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "num_replicas": 1,
    }


def consumer_config(spec: ConsumerSpec) -> Config:
    return {
        "name": spec.name,
        "durable_name": spec.name,
        "filter_subject": spec.filter_subject,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(spec.ack_wait_s * NANO),
        "max_ack_pending": spec.max_ack_pending,
        "max_deliver": -1,
        "max_waiting": 512,
    }


async def _ensure_stream(client: Client, config: Config) -> None:
    name = str(config["name"])
    answer = await _ask(client, f"STREAM.INFO.{name}", {})
    error = answer.get("error")
    if error is None:
        have = answer["config"]
        if not isinstance(have, dict) or not _differs(config, have):
            return
        # Fields that are not ours (replicas of a cluster, placement, mirrors' settings) stay as they are.
        wanted = {**have, **_without_loss(config, have, answer), "num_replicas": have["num_replicas"]}
        answer = await _ask(client, f"STREAM.UPDATE.{name}", wanted)
    elif isinstance(error, dict) and error.get("err_code") in NOT_FOUND:
        answer = await _ask(client, f"STREAM.CREATE.{name}", config)
    if error := answer.get("error"):
        raise ProvisionError(f"stream {name}", _words(error), _remedy(error))


def _without_loss(want: Config, have: Config, info: Config) -> Config:
    """`want`, except for limits that would throw away what lies in the stream: an operator's wider ones stay."""
    state = info["state"]
    if not isinstance(state, dict) or not state["messages"]:
        return want
    kept = dict(want)
    max_bytes, max_age_ns = want["max_bytes"], want["max_age"]
    if isinstance(max_bytes, int) and 0 < max_bytes < state["bytes"]:
        kept["max_bytes"] = have["max_bytes"]
    age_s = (_time(info["ts"]) - _time(state["first_ts"])).total_seconds()
    if isinstance(max_age_ns, int) and 0 < max_age_ns < age_s * NANO:
        kept["max_age"] = have["max_age"]
    if want["max_msgs_per_subject"] == 1 and state["messages"] > state.get("num_subjects", 0):
        why = "it holds several messages under one subject, and must be write-once"
        raise ProvisionError(f"stream {want['name']}", why, "back the stream up, remove it, start again")
    return kept


def _time(stamp: object) -> datetime:
    return datetime.fromisoformat(str(stamp)[:19] + "+00:00")


def _differs(want: Config, have: Config) -> bool:
    """The server leaves out what is false or zero."""
    return any(have.get(key) != value for key, value in want.items() if value or have.get(key))


async def _ask(client: Client, call: str, body: Config) -> Config:
    try:
        msg = await client.request(f"$JS.API.{call}", json.dumps(body).encode(), timeout=API_TIMEOUT_S)
    except nats.errors.NoRespondersError as error:
        raise ProvisionError(
            call, "this nats-server has no JetStream", "start it with `-js`, or use `llmbus up`"
        ) from error
    except (nats.errors.Error, TimeoutError) as error:
        raise ProvisionError(
            call, f"no answer: {error or type(error).__name__}", "see the nats-server's log"
        ) from error
    answer: Config = json.loads(msg.data)
    return answer


def _words(error: object) -> str:
    return f"{error.get('description')} ({error.get('err_code')})" if isinstance(error, dict) else str(error)


def _remedy(error: object) -> str:
    match error.get("err_code") if isinstance(error, dict) else None:
        case 10047 | 10023:
            return "give the nats-server more storage: max_file_store, or free disk space"
        case 10065:
            return "another stream holds these subjects; remove it or use another NATS account"
        case 10052:
            return "what is stored cannot be changed in place: back the stream up, remove it, start again"
    return "compare it with subjects/streams.py"
