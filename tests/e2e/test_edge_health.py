"""The edge says how everything is while nodes, routers and the bus come and go; and what the machines hold."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.bus import live_bus
from tests.support.edge import edge_on
from tests.support.fake_ollama import FakeModel, FakeOllama
from tests.support.inside import POLICY, inside
from tests.support.keyed import bearer, key_of

TWO = (
    POLICY.replace("  bench: {}\n", "  bench: {}\n  other: {}\n").replace("[bench]", "[bench, other]")
    + "limits: {node_silent_ms: 2000}\n"
)
ANSWERED_S = 2.0
"""What the answer may take, whatever is away."""


class Watched:
    """`GET /health` of an edge, each within its time."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def __call__(self) -> tuple[int, Any]:
        begun_s = time.monotonic()
        response = await self._http.get("/health")
        assert time.monotonic() - begun_s < ANSWERED_S
        assert ("retry-after" in response.headers) == (response.status_code == 503)
        return response.status_code, response.json()

    async def until(self, code: int, status: str, words: str = "") -> Any:
        """Its answer once it has this status, and a reason with these words."""
        async with asyncio.timeout(20):
            while True:
                found, body = await self()
                if (found, body["status"]) == (code, status) and words in " ".join(body["why_not"]):
                    return body
                await asyncio.sleep(0.05)


async def test_whatever_is_away_is_named_in_time_and_noticed_when_it_is_back(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(TWO)
    async with live_bus(policy=policy, nodes=("bench", "other")) as bus, edge_on(bus.url) as http:
        health = Watched(http)
        body = await health.until(200, "ok")
        head = await http.head("/health")
        assert (head.status_code, head.content) == (200, b"")
        assert body["nodes"]["other"]["backends"]["loopback"]["reachable"]
        bus.roles["other"].freeze()
        body = await health.until(200, "degraded", "does not answer")
        assert body["nodes"]["bench"]["status"] == "ok"
        bus.roles["other"].kill()
        body = await health.until(200, "degraded", "llmbus node other")
        assert body["nodes"]["other"]["status"] == "away"
        bus.roles["router0"].kill()
        body = await health.until(503, "down", "llmbus router")
        assert (body["bus"]["up"], body["routers"]) == (True, 0)
        bus.roles["nats"].freeze()
        body = await health.until(503, "down", "JetStream")
        assert not body["bus"]["up"]
        bus.roles["nats"].kill()
        await health.until(503, "down", "connection")
        bus.roles["nats"].start()
        bus.roles["router0"].start()
        bus.roles["other"].start()
        await health.until(200, "ok")


async def test_models_and_memory_are_told_as_they_are() -> None:
    async with FakeOllama({"x:1": FakeModel(gb=4.0)}, memory_gb=8.0) as ollama:
        policy = (
            POLICY.replace("bench: {}", f"bench: {{memory_gb: 8, urls: {{ollama: '{ollama.url}'}}}}")
            .replace("loopback: {dialect: loopback}", "loopback: {dialect: loopback}\n  ollama: {dialect: ollama}")
            .replace("loopback\n    backend: spare", "ollama\n    backend: x:1\n    role: coder\n    memory_gb: 3.5")
        )
        async with inside(policy=policy) as whole, edge_on(whole.url) as http:
            told = (await http.get("/models")).json()
            spare = told["models"]["spare"]
            assert (spare["role"], spare["memory_gb"], spare["where"]["bench"]["loaded"]) == ("coder", 3.5, False)
            assert told["models"]["echo"]["where"]["bench"]["loaded"] is None
            assert told["routing_rules"]["tasks"]["code"]["models"] == ["echo"]
            assert told["routing_rules"]["aliases"]["fast"]["strategy"] == "speed"
            node = (await http.get("/memory")).json()["nodes"]["bench"]
            assert (node["resident"], node["used_by_models_gb"], node["for_models_gb"]) == ([], 0, 8)
            answer = (await http.post("/coder", json={"prompt": "함수를 써 줘"})).json()
            async with asyncio.timeout(5):
                while not (node := (await http.get("/memory")).json()["nodes"]["bench"])["resident"]:
                    await asyncio.sleep(0.05)
            assert node["resident"] == ["spare"]
            assert node["used_by_models_gb"] == node["models"]["spare"]["memory_gb"] == 4
            assert (answer["model"], answer["agent"]) == ("spare", "coder")
            again = (await http.post("/coder", json={"prompt": "하나 더"})).json()
            assert again["memory_used_gb"] == 4, "as measured, and no longer as the policy guessed"
            assert (await http.get("/models")).json()["models"]["spare"]["where"]["bench"]["loaded"]


async def test_with_keys_strangers_learn_whether_it_is_well_and_nothing_else() -> None:
    async with inside() as whole, edge_on(whole.url, keys=True) as http:
        known = bearer(await key_of(whole.bus, "npc-ai"))
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert (await http.get("/health", headers=bearer("llmbus_wrong"))).json() == {"status": "ok"}
        for path in ("/models", "/memory"):
            assert (await http.get(path)).status_code == 401
            assert (await http.get(path, headers=known)).status_code == 200
        assert "bench" in (await http.get("/health", headers=known)).json()["nodes"]
        answer = await http.post("/batch", json=[{"prompt": "열쇠로"}], headers=known)
        assert answer.json()["succeeded"] == 1
