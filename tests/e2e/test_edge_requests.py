"""Durable requests over HTTP: asked once and answered once, looked at and called off from any edge, by their own."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from adapters import mailbox
from schemas import headers as h
from subjects.streams import CANCELS, CHUNKS, EVENTS, REQUESTS
from tests.support.cable import cable
from tests.support.edge import Edges, edge_on
from tests.support.faults import Held, told_of
from tests.support.inside import inside
from tests.support.openai_speech import error, refusing
from tests.support.upstreams import alone, one_slot, patient, upstreams

CHAT = "/v1/chat/completions"
KOREAN = "안개 낀 항구 마을에 종소리가 울린다."
ASYNC = {"prefer": "respond-async"}
SOON_S = 5.0
pytestmark = pytest.mark.asyncio(loop_scope="module")


def asked(text: str = "항구를 묘사해 줘", *, stream: bool = False, **loopback: Any) -> dict[str, Any]:
    told = {"metadata": {"loopback": {"text": KOREAN, **loopback}}} if loopback else {}
    return {"model": "auto", "messages": [{"role": "user", "content": text}], "stream": stream, **told}


def key(name: str, **more: str) -> dict[str, str]:
    return {"idempotency-key": name, **more}


async def until(http: httpx.AsyncClient, rid: str, *states: str) -> dict[str, Any]:
    """How it stands, once it stands so."""
    async with asyncio.timeout(SOON_S):
        while (told := (await http.get(f"/v1/requests/{rid}")).json()).get("state") not in states:
            await asyncio.sleep(0.01)
    return dict(told)


def said(stream: str) -> str:
    """What a whole stream of chat chunks says."""
    *events, done = [line.removeprefix("data: ") for line in stream.split("\n\n") if line and not line.startswith(":")]
    assert done == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def executions(two: Edges, rid: str) -> int:
    started = two.whole.bus.read(EVENTS, f"llm.evt.{two.client}.{rid}.attempt_started")
    return len([letter async for letter in started])


async def test_who_prefers_not_to_wait_is_told_where_the_answer_will_be(two: Edges) -> None:
    _, http, another = two
    accepted = await http.post(CHAT, json=asked(delay_ms=200), headers=ASYNC)
    assert accepted.status_code == 202
    assert accepted.headers["preference-applied"] == "respond-async"
    at = accepted.headers["location"]
    assert accepted.json()["location"] == at == f"/v1/requests/{accepted.headers['x-llm-request-id']}"
    running = (await another.get(at)).json()
    assert running["state"] in ("accepted", "queued", "running")
    assert running["reply"] is None
    ended = await until(another, accepted.json()["id"], "ok")
    assert ended["reply"]["message"]["content"] == KOREAN
    assert ended["cost_usd"] == ended["reply"]["cost_usd"] is not None
    assert [attempt["attempt_id"] for attempt in ended["attempts"]] == ["1.1"]
    assert ended["decision"].startswith("echo@bench ")
    assert (await another.get(at)).headers["x-llm-model"] == "echo"


async def test_who_would_wait_a_little_gets_the_answer_if_it_is_there_by_then(two: Edges) -> None:
    http = two.http
    quick = await http.post(CHAT, json=asked(), headers={"prefer": "wait=10, respond-async"})
    assert quick.status_code == 200
    assert quick.json()["object"] == "chat.completion"
    slow = await http.post(CHAT, json=asked(delay_ms=1200), headers={"prefer": "respond-async; x=1, wait=1"})
    assert slow.status_code == 202
    assert (await until(http, slow.json()["id"], "ok"))["reply"]["message"]["content"] == KOREAN
    refused = await http.post(CHAT, json={**asked(), "model": "nobody"}, headers={"prefer": "respond-async, wait=9"})
    assert refused.status_code == 404


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_same_key_and_request_is_the_same_answer_from_any_edge(
    two: Edges, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "LOOK_AGAIN_S", 600.0)  # nobody is to need that second look
    whole, http, another = two
    body = asked(stream=stream, pieces=5)
    twins = await asyncio.gather(*(each.post(CHAT, json=body, headers=key("k1")) for each in (http, another) * 3))
    later = await another.post(CHAT, json=body, headers=key("k1"))
    await whole.bus.client.request(f"$JS.API.STREAM.PURGE.{CHUNKS}", b"")
    long_after = await http.post(CHAT, json=body, headers=key("k1"))
    for response in (*twins, later, long_after):
        assert response.status_code == 200
        assert response.headers["x-llm-request-id"] == "k1"
        text = said(response.text) if stream else response.json()["choices"][0]["message"]["content"]
        assert text == KOREAN
    if not stream:
        assert len({response.headers["x-llm-latency-ms"] for response in (*twins, later, long_after)}) == 1
    assert await executions(two, "k1") == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_same_key_and_another_request_is_a_conflict_in_the_dialects_shape(two: Edges, stream: bool) -> None:
    _, http, another = two
    first = asyncio.create_task(http.post(CHAT, json=asked(stream=stream, pieces=20, piece_ms=20), headers=key("k1")))
    await until(http, "k1", "running")
    while_it_runs = await another.post(CHAT, json=asked("다른 질문", stream=stream), headers=key("k1"))
    await first
    later = await another.post(CHAT, json=asked("다른 질문", stream=stream), headers=key("k1"))
    unwaited = await another.post(CHAT, json=asked("다른 질문", stream=stream), headers=key("k1", **ASYNC))
    for response in (while_it_runs, later, unwaited):
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "idempotency_conflict"
        assert response.json()["error"]["llm"]["request_id"] == "k1"
    assert first.result().status_code == 200
    assert (await http.get("/v1/requests/k1")).json()["state"] == "ok"
    assert await executions(two, "k1") == 1


async def test_a_key_that_is_no_token_stands_for_one(two: Edges) -> None:
    async def same_from_both(name: str) -> None:
        header = {b"idempotency-key": name.encode()}
        first, again = [await each.post(CHAT, json=asked(), headers=header) for each in (two.http, two.another)]
        rid = first.headers["x-llm-request-id"]
        assert rid.startswith("key-")
        assert (first.status_code, again.status_code, again.headers["x-llm-request-id"]) == (200, 200, rid)
        assert first.json()["choices"] == again.json()["choices"]
        assert (await two.http.get(f"/v1/requests/{rid}")).json()["state"] == "ok"
        assert await executions(two, rid) == 1

    await asyncio.gather(*map(same_from_both, ("주문 17/2", "seq-17", "x" * 65, "a.b*>", "' OR 1=1 --")))


async def test_the_same_key_of_two_clients_is_two_requests_and_neither_sees_the_others(two: Edges) -> None:
    http = two.http
    for name in ("mine", "theirs"):
        response = await http.post(CHAT, json=asked(name), headers=key("k1", **{"x-llm-client": name}))
        assert name in response.json()["choices"][0]["message"]["content"]
    secret = await http.post(CHAT, json=asked(), headers={"x-llm-client": "theirs"})
    at = f"/v1/requests/{secret.headers['x-llm-request-id']}"
    for method, path in (("GET", at), ("GET", f"{at}/events"), ("DELETE", at)):
        hidden = await http.request(method, path, headers={"x-llm-client": "mine"})
        assert (hidden.status_code, hidden.json()["error"]["type"]) == (404, "no_route")
    listed = (await http.get("/v1/requests", headers={"x-llm-client": "mine"})).json()["data"]
    assert [line["id"] for line in listed] == ["k1"]


async def test_what_makes_no_sense_is_refused_typed(two: Edges) -> None:
    whole, http, _ = two
    for rid in ("nobody", "seq-1", "a.b", "%2A", "%3E", "x" * 100, "한글"):
        at = f"/v1/requests/{rid}"
        for method, path in (("GET", at), ("GET", f"{at}/events"), ("DELETE", at)):
            response = await http.request(method, path)
            assert (response.status_code, response.json()["error"]["type"]) == (404, "no_route")
    assert await whole.bus.last(CANCELS, f"llm.cancel.{two.client}.*") is None
    for query in ("limit=0", "limit=101", "limit=x", "before=0", "before=x"):
        response = await http.get(f"/v1/requests?{query}")
        assert (response.status_code, response.json()["error"]["type"]) == (400, "bad_request")


async def test_what_no_router_has_seen_is_accepted_and_what_no_node_can_take_waits() -> None:
    async with inside(nodes=False, routers=0) as whole, edge_on(whole.url) as http:
        accepted = await http.post(CHAT, json=asked(), headers=key("r1", **ASYNC))
        assert accepted.status_code == 202
        told = (await http.get("/v1/requests/r1")).json()
        assert (told["state"], told["capability"], told["decision"]) == ("accepted", "chat", None)
        assert (await http.get("/v1/requests")).json()["data"][0]["state"] == "accepted"
        await whole.start_router()
        await until(http, "r1", "waiting")
        assert (await http.get("/v1/requests")).json()["data"][0]["state"] == "waiting"
        await whole.start_node()
        assert (await until(http, "r1", "ok"))["reply"]["status"] == "ok"


async def test_a_queued_request_knows_its_place_and_how_long_that_may_take() -> None:
    go = asyncio.Event()
    async with upstreams(one_slot) as up, edge_on(up.bus.url) as http:
        await http.post(CHAT, json=asked(), headers={"x-llm-client": "tester"})  # measures its speed
        await told_of(up, "primary", lambda model: model.tokens_per_s is not None)
        up.primary.script = Held(go)
        up.primary.arrived.clear()
        for n in range(4):
            accepted = await http.post(CHAT, json=asked(), headers=key(f"r{n}", **ASYNC))
            assert accepted.status_code == 202
            if n == 0:
                await up.primary.arrived.wait()
        states = [await until(http, f"r{n}", "queued" if n else "running") for n in range(4)]
        assert [state["queue_position"] for state in states] == [None, 1, 2, 3]
        first, *queued = [state["estimate_ms"] for state in states]
        assert 0 <= first <= queued[0] < queued[1] < queued[2]
        listed = (await http.get("/v1/requests")).json()["data"]
        assert [(line["id"], line["state"]) for line in listed] == [
            ("r3", "queued"), ("r2", "queued"), ("r1", "queued"), ("r0", "running"),
        ]  # fmt: skip
        go.set()
        await until(http, "r3", "ok")


async def test_one_that_failed_tells_its_attempts_and_its_error() -> None:
    async with upstreams(alone) as up, edge_on(up.bus.url) as http:
        up.primary.script = refusing(400, error("모르는 값입니다"))
        refused = await http.post(CHAT, json=asked(), headers=key("r1"))
        told = (await http.get("/v1/requests/r1")).json()
        assert (told["state"], told["reply"]["status"]) == ("error", "error")
        assert told["error"] == told["reply"]["error"]
        assert json.loads(told["attempts"][0]["failure"]["upstream"])["error"]["message"] == "모르는 값입니다"
        assert refused.status_code == 400


async def test_one_whose_target_asked_for_patience_waits_and_can_be_called_off() -> None:
    async with upstreams(alone) as up, edge_on(up.bus.url) as http:
        up.primary.script = refusing(429, error("slow down"), Retry_After="60")
        await http.post(CHAT, json=asked(), headers=key("r1", **ASYNC))
        told = await until(http, "r1", "waiting")
        assert [attempt["failure"]["kind"] for attempt in told["attempts"]] == ["rate_limited"]
        gone = await http.delete("/v1/requests/r1")
        assert (gone.status_code, gone.json()["state"]) == (200, "cancelled")


async def test_deleting_calls_it_off_and_twice_is_as_good_as_once() -> None:
    async with upstreams(patient) as up, edge_on(up.bus.url) as http, edge_on(up.bus.url) as another:
        up.primary.script = Held(asyncio.Event())
        waiting = asyncio.create_task(http.post(CHAT, json=asked(), headers=key("r1")))
        await up.primary.arrived.wait()
        gone = await another.delete("/v1/requests/r1")
        await asyncio.wait_for(up.primary.exchanges[0].gone.wait(), 1)
        assert (gone.status_code, gone.json()["state"]) == (200, "cancelled")
        assert (await waiting).status_code == 499
        again = await http.delete("/v1/requests/r1")
        assert (again.status_code, again.json()) == (200, gone.json())
        assert len([letter async for letter in up.bus.bus.read(CANCELS)]) == 1


async def test_deleting_what_is_answered_changes_nothing(two: Edges) -> None:
    whole, http, _ = two
    await http.post(CHAT, json=asked(), headers=key("r1"))
    kept = await http.delete("/v1/requests/r1")
    assert (kept.status_code, kept.json()["state"]) == (200, "ok")
    assert await whole.bus.last(CANCELS, f"llm.cancel.{two.client}.*") is None


async def test_the_list_is_paged_newest_first_each_once_whoever_else_asks_between(two: Edges) -> None:
    http = two.http
    for n in range(13):
        mine = http.post(CHAT, json=asked(f"{n}번째"), headers=key(f"r{n}"))
        others = [http.post(CHAT, json=asked(), headers={"x-llm-client": "rival"}) for _ in range(n % 3)]
        again = [http.post(CHAT, json=asked("0번째"), headers=key("r0"))] if n in (7, 12) else []
        await asyncio.gather(mine, *others, *again)
    for limit in (1, 4, 13, 100):
        ids, before, pages = [], "", 0
        while True:
            page = (await http.get(f"/v1/requests?limit={limit}{before}")).json()
            assert len(page["data"]) <= limit
            ids += [line["id"] for line in page["data"]]
            pages += 1
            if page["before"] is None:
                break
            before = f"&before={page['before']}"
        assert ids == [f"r{n}" for n in reversed(range(13))]
        assert pages <= 15 // limit + 1
    first = (await http.get("/v1/requests?limit=1")).json()["data"][0]
    assert (first["state"], first["error"]) == ("ok", None)
    assert first["cost_usd"] is not None
    assert (await http.get("/v1/requests", headers={"x-llm-client": "newcomer"})).json() == {
        "data": [], "before": None,
    }  # fmt: skip


async def test_whoever_was_told_that_nothing_is_known_asks_again_with_that_id_and_is_answered_once(two: Edges) -> None:
    whole = two.whole
    async with cable(whole.url) as (wire, url), edge_on(url) as http:
        http.headers["x-llm-client"] = two.client
        await http.post(CHAT, json=asked())
        wire.cut()
        lost = await http.post(CHAT, json=asked())
        rid = lost.headers["x-llm-request-id"]
        told = lost.json()["error"]["llm"]
        assert (lost.status_code, told["type"], told["spent"]) == (503, "storage_unavailable", "unknown")
        assert f"`Idempotency-Key: {rid}`" in told["message"]
        assert int(lost.headers["retry-after"]) > 0
        assert lost.headers["x-should-retry"] == "false"  # it may run already
        await wire.mend()
        again = await http.post(CHAT, json=asked(), headers=key(rid))
        assert (again.status_code, again.headers["x-llm-request-id"]) == (200, rid)
        assert await executions(two, rid) == 1


async def test_without_the_bus_nothing_is_accepted_and_nothing_published_later(two: Edges) -> None:
    whole = two.whole
    async with cable(whole.url) as (wire, url), edge_on(url) as http:
        http.headers["x-llm-client"] = two.client
        wire.pull()
        refused: list[httpx.Response] = []
        async with asyncio.timeout(SOON_S):
            while not refused or refused[-1].json()["error"]["llm"]["spent"] != "no":
                refused.append(await http.post(CHAT, json=asked()))
        looked = await http.get("/v1/requests/r1")
        assert (looked.status_code, looked.json()["error"]["type"]) == (503, "storage_unavailable")
        await wire.mend()
        async with asyncio.timeout(SOON_S):
            while (await http.post(CHAT, json=asked(), headers=key("after"))).status_code != 200:
                await asyncio.sleep(0.05)
        stored = {letter.headers[h.REQUEST_ID] async for letter in whole.bus.read(REQUESTS)}
        assert refused[-1].headers["x-llm-request-id"] not in stored
