"""Streams and consumers on a real broker: made, brought up to date or refused in words; nothing stored is ever lost."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from adapters.bus import ProvisionError, connect, provision
from adapters.bus.provision import bucket_config, ensure_consumer, stream_config
from subjects.streams import BUCKETS, CANCELS, DEAD, MIB, REPLIES, REQUESTS, SETTLER, STREAMS, WORK, work_consumer
from tests.support.nats_server import OwnBroker, start_server

EXPECTED = [stream_config(spec) for spec in STREAMS] + [bucket_config(spec) for spec in BUCKETS]


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    async with connect(url, name="test") as client:
        yield client


async def info(client: Client, stream: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await client.request(f"$JS.API.STREAM.INFO.{stream}")).data)
    return answer


async def test_everything_is_made_as_it_is_described(broker: OwnBroker) -> None:
    async with client_of(broker.url) as client:
        await provision(client)
        for config in EXPECTED:
            have = (await info(client, str(config["name"])))["config"]
            # The server leaves out what is false or zero.
            assert {key: have.get(key) or None for key in config} == {k: v or None for k, v in config.items()}


async def test_again_changes_nothing(broker: OwnBroker) -> None:
    async with client_of(broker.url) as client:
        await provision(client)
        before = [await info(client, str(config["name"])) for config in EXPECTED]
        changes = await client.subscribe("$JS.EVENT.ADVISORY.STREAM.>")
        await client.flush()
        await provision(client)
        await client.flush()
        after = [await info(client, str(config["name"])) for config in EXPECTED]
        assert [(a["config"], a["created"]) for a in after] == [(b["config"], b["created"]) for b in before]
        assert changes.pending_msgs == 0


async def test_replicas_may_start_at_the_same_moment(broker: OwnBroker) -> None:
    async def one() -> None:
        async with client_of(broker.url) as client:
            await provision(client)
            await ensure_consumer(client, SETTLER)

    await asyncio.gather(*(one() for _ in range(6)))


async def test_what_may_change_is_brought_up_to_date_and_the_operators_own_stays(broker: OwnBroker) -> None:
    async with client_of(broker.url) as client:
        js = client.jetstream()
        await js.add_stream(StreamConfig(name=DEAD, subjects=["llm.dead.x"], max_age=60, metadata={"team": "ops"}))
        await js.publish("llm.dead.x", "읽을 수 없음".encode())
        await provision(client)
        have = await info(client, DEAD)
        expected = next(config for config in EXPECTED if config["name"] == DEAD)
        assert {key: have["config"][key] for key in ("subjects", "max_age", "max_bytes", "discard")} == {
            key: expected[key] for key in ("subjects", "max_age", "max_bytes", "discard")
        }
        assert have["config"]["metadata"]["team"] == "ops"
        assert have["state"]["messages"] == 1


@pytest.mark.parametrize(
    ("name", "subjects", "facts"),
    [
        (REQUESTS, ["llm.req.*", "llm.req.*.*"], {"retention": "workqueue"}),
        (WORK, ["llm.work.>"], {"retention": "limits"}),
        (REPLIES, ["llm.res.*.*"], {"storage": "memory"}),
    ],
)
async def test_what_cannot_change_is_refused_and_kept(
    broker: OwnBroker, name: str, subjects: list[str], facts: dict[str, Any]
) -> None:
    async with client_of(broker.url) as client:
        js = client.jetstream()
        await js.add_stream(StreamConfig(name=name, subjects=subjects, **facts))
        await js.publish(subjects[0].replace("*", "x").replace(">", "a.b.normal.r"), b"kept")
        before = await info(client, name)
        with pytest.raises(ProvisionError) as caught:
            await provision(client)
        assert caught.value.name == f"stream {name}"
        assert "remedy: " in str(caught.value)
        assert next(iter(facts)) in str(caught.value) or "cannot be changed" in str(caught.value)
        after = await info(client, name)
        assert (after["config"], after["state"]["messages"]) == (before["config"], 1)


async def test_a_foreign_stream_on_our_subjects_is_named_and_left_alone(broker: OwnBroker) -> None:
    async with client_of(broker.url) as client:
        js = client.jetstream()
        await js.add_stream(StreamConfig(name="THEIRS", subjects=["llm.req.>"]))
        await js.publish("llm.req.code", b"theirs")
        with pytest.raises(ProvisionError, match="another stream holds these subjects") as caught:
            await provision(client)
        assert caught.value.name == f"stream {REQUESTS}"
        assert (await info(client, "THEIRS"))["state"]["messages"] == 1


async def test_messages_beyond_a_lower_limit_are_never_deleted(broker: OwnBroker) -> None:
    """An operator had given the stream more room than we would: taking it back must not cost what lies in it."""
    async with client_of(broker.url) as client:
        js = client.jetstream()
        await js.add_stream(StreamConfig(name=CANCELS, subjects=["llm.cancel.*.*"], max_bytes=64 * MIB, discard="old"))  # type: ignore[arg-type]
        for n in range(30):
            await js.publish(f"llm.cancel.c.r{n}", bytes(900_000))
        try:
            await provision(client)
        except ProvisionError as refusal:
            assert refusal.name == f"stream {CANCELS}"  # noqa: PT017  # to refuse is as good as to leave it
        assert (await info(client, CANCELS))["state"]["messages"] == 30


async def test_several_replies_under_one_subject_are_never_deleted(broker: OwnBroker) -> None:
    async with client_of(broker.url) as client:
        js = client.jetstream()
        await js.add_stream(StreamConfig(name=REPLIES, subjects=["llm.res.*.*"]))
        for body in (b"first", b"second"):
            await js.publish("llm.res.c.r1", body)
        try:
            await provision(client)
        except ProvisionError as refusal:
            assert refusal.name == f"stream {REPLIES}"  # noqa: PT017
        assert (await info(client, REPLIES))["state"]["messages"] == 2


async def test_without_jetstream_it_says_what_to_do(tmp_path: Path) -> None:
    with _server(tmp_path, jetstream=False) as url:
        async with client_of(url) as client:
            with pytest.raises(ProvisionError, match=r"(?s)no JetStream.*remedy: .*llmbus up"):
                await provision(client)


async def test_a_broker_too_small_for_the_streams_says_what_to_do(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text(f'jetstream {{ store_dir: "{tmp_path}/js", max_file_store: 100MB, max_memory_store: 1GB }}')
    with _server(tmp_path, "-c", str(config), jetstream=False) as url:
        async with client_of(url) as client:
            with pytest.raises(ProvisionError, match=r"(?s)remedy: .*max_file_store"):
                await provision(client)


async def test_a_consumer_is_made_once_and_brought_up_to_date(broker: OwnBroker) -> None:
    async with client_of(broker.url) as client:
        await provision(client)
        lane = work_consumer("macmini", "coder", "high")
        for spec in (lane, lane, replace(lane, ack_wait_s=9, max_ack_pending=7)):
            await ensure_consumer(client, spec)
            have = (await client.jetstream().consumer_info(WORK, spec.name)).config
            assert (have.ack_wait, have.max_ack_pending) == (spec.ack_wait_s, spec.max_ack_pending)


async def test_a_consumer_that_cannot_be_is_refused_in_words(broker: OwnBroker) -> None:
    async with client_of(broker.url) as client:
        await provision(client)
        lane = work_consumer("macmini", "coder", "high")
        await ensure_consumer(client, lane)
        with pytest.raises(ProvisionError, match=r"(?s)consumer LLM_WORK/other.*remedy: "):
            await ensure_consumer(client, replace(lane, name="other"))
        with pytest.raises(ProvisionError, match=r"consumer NOWHERE/"):
            await ensure_consumer(client, replace(lane, stream="NOWHERE"))


@contextmanager
def _server(directory: Path, *options: str, jetstream: bool) -> Iterator[str]:
    server, url = start_server(directory, *options, jetstream=jetstream)
    try:
        yield url
    finally:
        server.kill()
        server.wait(10)
