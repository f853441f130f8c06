"""How everything is, in one answer on the bus and on the command line, whatever is away."""

import asyncio
import json

import nats.errors
import pytest

from ops.node import node
from schemas import FleetHealth
from subjects import HealthCall
from tests.support.bus import free_port
from tests.support.command import answer, llmbus
from tests.support.inside import POLICY, Inside, inside

TWO = POLICY.replace("  bench: {}\n", "  bench: {}\n  other: {about: 둘째 기계, memory_gb: 64}\n")
SPARE = "[{}]\n    provider: loopback\n    backend: spare"
TWO = TWO.replace(SPARE.format("bench"), SPARE.format("other"))


async def asked(whole: Inside) -> FleetHealth:
    return FleetHealth.decode((await whole.bus.client.request(str(HealthCall()), b"", timeout=5)).data)


async def test_one_answer_holds_every_node_with_its_backends_and_models() -> None:
    async with inside(policy=TWO, routers=2) as whole:
        async with node(whole.url, "other"):
            health = await asked(whole)
        assert (health.status, health.why_not, health.routers) == ("ok", (), 2)
        assert health.bus.up
        assert {name: each.status for name, each in health.nodes.items()} == {"bench": "ok", "other": "ok"}
        bench = health.nodes["bench"]
        assert bench.backends["loopback"].reachable
        assert [list(each.models) for each in health.nodes.values()] == [["echo"], ["spare"]]
        assert bench.memory_free_bytes
        assert bench.heard_ms_ago is not None


async def test_what_is_away_or_drains_is_named_and_the_rest_still_answers() -> None:
    away = f"http://127.0.0.1:{free_port()}"
    policy = TWO.replace(
        "loopback: {dialect: loopback}", f"loopback: {{dialect: loopback}}\n  far: {{dialect: ollama, url: '{away}'}}"
    ).replace("provider: loopback\n    backend: spare", "provider: far\n    backend: spare")
    async with inside(policy=policy) as whole:
        health = await asked(whole)
        assert (health.status, health.nodes["bench"].status) == ("degraded", "ok")
        assert health.nodes["other"].status == "away"
        assert any("llmbus node other" in why for why in health.why_not)
        async with node(whole.url, "other") as other:
            await other.drain()
            while (health := await asked(whole)).nodes["other"].status == "away":
                await asyncio.sleep(0.05)
            found = health.nodes["other"]
            assert (health.status, found.status, found.draining) == ("degraded", "down", True)
            assert found.why_not is not None
            assert "it drains" in found.why_not
            assert "not usable: spare" in found.why_not
            assert not found.backends["far"].reachable


async def test_nothing_can_be_answered_without_a_node_or_a_router() -> None:
    async with inside(nodes=False) as whole:
        health = await asked(whole)
        assert (health.status, health.bus.up, health.routers) == ("down", True, 1)
        ran = await asyncio.to_thread(llmbus, "health", url=whole.url)
        assert ran.returncode == 1
        assert "llmbus node bench" in ran.stdout
    async with inside(routers=0) as whole:
        with pytest.raises(nats.errors.NoRespondersError):
            await asked(whole)
        told = await asyncio.to_thread(answer, "health", url=whole.url, code=1)
        assert (told["status"], told["routers"], told["nodes"]["bench"]["status"]) == ("down", 0, "ok")


async def test_the_screen_shows_every_part_and_no_bus_is_said_too() -> None:
    async with inside(policy=TWO) as whole:
        ran = await asyncio.to_thread(llmbus, "health", url=whole.url)
        assert ran.returncode == 0
        for part in ("degraded", "bus", "routers", "node bench", "reaches loopback", "node other", "away", "echo"):
            assert part in ran.stdout
    ran = await asyncio.to_thread(llmbus, "health", "--json", url=f"nats://127.0.0.1:{free_port()}")
    assert ran.returncode == 1
    told = json.loads(ran.stdout)
    assert (told["status"], told["bus"]["up"]) == ("down", False)
    assert "llmbus up" in told["bus"]["why_not"]
