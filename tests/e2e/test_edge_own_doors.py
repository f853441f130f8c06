"""The users' own doors over real HTTP: one request, the roles, a conversation of agents, and batches."""

import asyncio
import json
import time
from datetime import datetime
from typing import Any

import httpx
import pytest

from adapters import mailbox
from schemas import LlmRequest
from subjects.streams import REQUESTS
from tests.support.edge import edge_on
from tests.support.faults import Held
from tests.support.inside import POLICY, inside
from tests.support.nats_server import OwnBroker
from tests.support.upstreams import patient, upstreams

ROLES = POLICY.replace("    backend: echo\n", "    backend: echo\n    role: coder\n    memory_gb: 19\n")
TESTER = {"x-llm-client": "tester"}
ASKED = {"prompt": "항구를 묘사해 줘", "task_type": "code", "urgency": "low", "max_tokens": 50, "temperature": 0.2}


def says(text: str, **loopback: Any) -> dict[str, Any]:
    return {"prompt": text, "metadata": {"loopback": {"text": text, **loopback}}}


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    """Name and data of each."""
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_a_request_is_answered_with_who_did_it_and_what_it_took() -> None:
    async with inside(policy=ROLES) as whole, edge_on(whole.url) as http:
        response = await http.post("/route", json={**ASKED, "context": {"도시": "부산"}})
        assert response.status_code == 200
        body = response.json()
        assert "부산" in body["response"]
        assert "항구를 묘사해 줘" in body["response"]
        assert (body["model"], body["agent"], body["memory_used_gb"]) == ("echo", "coder", 19)
        assert body["tokens_generated"] > 0
        assert body["latency_ms"] > 0
        assert datetime.fromisoformat(body["timestamp"]).tzinfo
        assert body["request_id"] == response.headers["x-llm-request-id"]
        stored = await whole.bus.last(REQUESTS, "llm.req.chat.local")
        assert stored is not None
        request = LlmRequest.decode(stored.data)
        assert (request.urgency, request.task, request.preferences.max_tokens) == ("batch", "code", 50)


async def test_a_role_has_its_door_and_one_that_nobody_has_is_a_404_that_says_so() -> None:
    async with inside(policy=ROLES) as whole, edge_on(whole.url) as http:
        response = await http.post("/coder", json={"prompt": "함수를 써 줘"})
        assert (response.status_code, response.json()["agent"]) == (200, "coder")
        response = await http.post("/architect", json={"prompt": "설계해 줘"})
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (404, "no_route")
        assert "role: architect" in error["message"]
        assert error["request_id"] == response.headers["x-llm-request-id"]
        response = await http.post("/coder", json={"prompt": "x", "model": "spare"})
        assert (response.status_code, response.json()["error"]["type"]) == (400, "bad_request")


async def test_agents_talk_as_they_always_did() -> None:
    asked = {"agent": "npc-ai", "task": "code", "message": "인사해 줘", "preferences": {"strategy": "speed"}}
    async with inside() as whole, edge_on(whole.url) as http:
        body = (await http.post("/api/chat", json={**asked, "context": "밤이다"})).json()
        assert "밤이다 인사해 줘" in body["response"]
        told = body["metadata"]
        assert (body["model_used"], told["provider"]) == ("echo", "loopback")
        assert min(told["cost"], told["tokens_used"], told["response_time"]) > 0
        assert "strategy=speed" in told["decision"]
        same = await whole.client.route_request("npc-ai", "code", "인사해 줘", context="밤이다")
        assert same.keys() == body.keys()
        assert same["metadata"].keys() == told.keys()


async def test_a_stream_is_pieces_and_then_the_same_reply_or_an_error() -> None:
    async with inside() as whole, edge_on(whole.url) as http:
        response = await http.post("/route", json={**says("안개 낀 항구", pieces=4), "stream": True})
        *pieces, (last, reply) = events(response)
        assert [name for name, _ in pieces] == ["piece"] * 4
        assert "".join(piece["text"] for _, piece in pieces) == "안개 낀 항구" == reply["response"]
        assert (last, reply["model"]) == ("reply", "echo")
        asked = {"agent": "npc-ai", "message": "안녕", "stream": True}
        *_, (last, reply) = events(await http.post("/api/chat", json=asked))
        assert (last, reply["model_used"]) == ("reply", "echo")
        fails = {"prompt": "안녕", "stream": True, "model": "nobody"}
        response = await http.post("/route", json=fails)
        assert (response.status_code, response.json()["error"]["type"]) == (404, "no_route")


async def test_one_bad_item_of_a_batch_fails_no_other_and_their_order_is_kept() -> None:
    items = [says("첫째", delay_ms=80), says(" "), 5, says("넷째"), {**says("다섯째"), "stream": True}]
    async with inside() as whole, edge_on(whole.url) as http:
        response = await http.post("/batch", json={"requests": items}, headers={"idempotency-key": "b1"})
        body = response.json()
        assert response.status_code == 200
        assert (body["id"], body["total"], body["succeeded"], body["failed"]) == ("b1", 5, 2, 3)
        results = body["results"]
        assert [result["index"] for result in results] == [0, 1, 2, 3, 4]
        assert [result["status"] for result in results] == ["ok", "error", "error", "ok", "error"]
        assert [result["request_id"] for result in results] == [f"b1-{n}" for n in range(5)]
        assert (results[0]["response"], results[3]["response"]) == ("첫째", "넷째")
        assert all(results[n]["error"]["type"] == "bad_request" for n in (1, 2, 4))
        # Each is a request of its own, and stays.
        reply = await whole.bus.last("LLM_REPLIES", "llm.res.local.b1-3")
        assert reply is not None


async def test_a_batch_that_is_sent_again_at_once_is_told_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "LOOK_AGAIN_S", 60)
    items = [{"prompt": f"{n}번째"} for n in range(3)]
    async with inside() as whole, edge_on(whole.url) as http, asyncio.timeout(20):
        first, again = [await http.post("/batch", json=items, headers={"idempotency-key": "b4"}) for _ in range(2)]
        told = [[result["latency_ms"] for result in each.json()["results"]] for each in (first, again)]
        assert told[0] == told[1]
        changed = (await http.post("/batch", json=[{"prompt": "다른 것"}], headers={"idempotency-key": "b4"})).json()
        assert changed["results"][0]["error"]["type"] == "idempotency_conflict"


async def test_what_is_no_batch_is_refused_whole() -> None:
    async with inside(nodes=False, routers=0) as whole, edge_on(whole.url) as http:
        for body in (
            b"",
            b"[]",
            b"{}",
            b"7",
            b"[[[",
            b'{"requests": "\xed\x95\x9c"}',
            b'{"requests": [{}], "stream": true}',
        ):
            response = await http.post("/batch", content=body)
            assert (response.status_code, response.json()["error"]["type"]) == (400, "bad_request"), body


async def test_items_of_a_batch_run_side_by_side_and_a_caller_that_leaves_cancels_all() -> None:
    async with upstreams(patient) as up, edge_on(up.bus.url) as http:
        up.primary.script = Held(asyncio.Event())
        body = [{"prompt": f"{n}번째"} for n in range(5)]
        asking = asyncio.create_task(http.post("/batch", json=body, headers={"idempotency-key": "b2", **TESTER}))
        async with asyncio.timeout(5):
            while len(up.primary.exchanges) < 5:
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(*(exchange.gone.wait() for exchange in up.primary.exchanges))
        for n in range(5):
            reply = await up.bus.client.result(f"b2-{n}", timeout_s=5)
            assert reply is not None
            assert reply.status == "cancelled"


async def test_a_batch_that_is_not_waited_for_is_answered_all_the_same() -> None:
    headers = {"idempotency-key": "b3", "prefer": "respond-async", **TESTER}
    async with inside() as whole, edge_on(whole.url) as http:
        response = await http.post("/batch", json=[says("하나"), says(" "), says("셋")], headers=headers)
        body = response.json()
        assert (response.status_code, response.headers["preference-applied"]) == (202, "respond-async")
        assert (body["total"], body["accepted"], body["failed"]) == (3, 2, 1)
        assert [result["status"] for result in body["results"]] == ["accepted", "error", "accepted"]
        assert body["results"][2]["location"] == "/v1/requests/b3-2"
        reply = await whole.client.result("b3-2", timeout_s=5)
        assert reply is not None
        assert reply.message is not None
        assert reply.message.content == "셋"


async def test_a_batch_without_a_bus_is_a_503_at_once_and_no_list_of_failures(broker: OwnBroker) -> None:
    async with edge_on(broker.url) as http:
        broker.kill()
        asking = time.monotonic()
        response = await http.post("/batch", json=[says(f"{n}번째") for n in range(200)])
        assert time.monotonic() - asking < 4
        assert (response.status_code, response.json()["error"]["type"]) == (503, "storage_unavailable")
        assert response.headers["retry-after"]
