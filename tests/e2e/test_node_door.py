"""A running node answers for itself on `llm.node.<node>.*`, whatever its backends do."""

import asyncio
import json

import nats.errors
import pytest

from ops.node import node
from schemas import Health
from subjects import NodeCall
from tests.support.bus import free_port
from tests.support.inside import POLICY, Inside, inside


async def asked(whole: Inside, name: str = "bench") -> Health:
    return Health.decode((await whole.bus.client.request(str(NodeCall(name, "health")), b"", timeout=5)).data)


async def test_health_is_one_answer_even_when_a_backend_is_down() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    policy = POLICY.replace(
        "loopback: {dialect: loopback}", f"loopback: {{dialect: loopback}}\n  far: {{dialect: ollama, url: '{away}'}}"
    )
    policy = policy.replace("provider: loopback\n    backend: spare", "provider: far\n    backend: spare")
    async with inside(policy=policy) as whole:
        health = await asked(whole)
        assert (health.node, health.status, health.draining) == ("bench", "degraded", False)
        assert health.backends["loopback"].reachable
        assert not health.backends["far"].reachable
        assert health.backends["far"].why_not
        assert {name: model.usable for name, model in health.models.items()} == {"echo": True, "spare": False}
        assert health.memory_free_bytes
        assert (await whole.client.ask("아직 대답하니?", capability="code")).status == "ok"


async def test_a_node_is_found_by_service_discovery() -> None:
    async with inside() as whole:
        found = await whole.bus.client.request("$SRV.INFO.llmbus-node-bench", b"", timeout=5)
        (endpoint,) = json.loads(found.data)["endpoints"]
        assert endpoint["subject"] == "llm.node.bench.*"


async def test_a_node_that_is_not_there_is_told_at_once() -> None:
    async with inside(nodes=False) as whole:
        with pytest.raises(nats.errors.NoRespondersError):
            await asked(whole)


async def test_draining_outlives_nothing_and_may_be_told_twice() -> None:
    async with inside(nodes=False) as whole:
        async with node(whole.url, "bench") as first:
            await asyncio.gather(first.drain(), first.drain())
            assert (await asked(whole)).draining
            await asyncio.gather(first.resume(), first.resume())
            assert not (await asked(whole)).draining
            assert (await whole.client.ask("다시", capability="code")).status == "ok"
            await first.drain()
        async with node(whole.url, "bench"):
            assert not (await asked(whole)).draining
            assert (await whole.client.ask("새로", capability="code")).status == "ok"
