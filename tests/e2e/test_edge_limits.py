"""What clients of edges may use: many edges agree on it, and money is reserved before it is spent."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import yaml

from adapters.bus import JetStreamBus, open_bus
from adapters.meters import Meters
from ops.client_keys import limit
from ops.commands.history import Wanted
from ops.commands.verify import verify
from schemas import headers as h
from schemas.request import LlmRequest
from subjects import Open
from subjects.streams import OPEN, REPLIES, REQUESTS
from tests.support.bus import environment
from tests.support.edge import edge_on
from tests.support.inside import POLICY, Inside, inside
from tests.support.keyed import CHAT, bearer, chat, key_of, told
from tests.support.nats_server import OwnBroker

LLMBUS = str(Path(sys.executable).with_name("llmbus"))
MINUTE_MS = 60_000
Edges = tuple[httpx.AsyncClient, httpx.AsyncClient]


@asynccontextmanager
async def two_edges(policy: str = POLICY, **settings: Any) -> AsyncIterator[tuple[Inside, Edges]]:
    async with (
        inside(policy=policy, client="npc-ai", **settings) as whole,
        edge_on(whole.url, keys=True) as one,
        edge_on(whole.url, keys=True) as two,
    ):
        yield whole, (one, two)


async def statuses(edges: Edges, key: str, count: int, **asked: Any) -> list[httpx.Response]:
    """So many requests at once, turn by turn over the edges."""
    return list(await asyncio.gather(*(chat(edges[n % 2], key, **asked) for n in range(count))))


def codes(responses: list[httpx.Response]) -> dict[int, int]:
    found = [response.status_code for response in responses]
    return {code: found.count(code) for code in sorted(set(found))}


async def within_a_minute(bus: JetStreamBus, count: Callable[[], Awaitable[None]]) -> None:
    """What counts by the minute, again should the minute have turned meanwhile."""
    while True:
        minute = bus.now_ms() // MINUTE_MS
        try:
            await count()
        except AssertionError:
            if bus.now_ms() // MINUTE_MS == minute:
                raise
        else:
            return


async def until_answered(http: httpx.AsyncClient, key: str, **asked: Any) -> httpx.Response:
    async with asyncio.timeout(10):
        while (response := await chat(http, key, **asked)).status_code == 429:
            pass
    return response


async def open_places(bus: JetStreamBus) -> list[str]:
    return [letter.subject async for letter in bus.read(OPEN)]


async def until_none_is_open(bus: JetStreamBus) -> None:
    async with asyncio.timeout(10):
        while await open_places(bus):
            await asyncio.sleep(0)


async def test_requests_per_minute_are_those_of_all_edges() -> None:
    async with two_edges() as (whole, edges):
        names = iter("abc")

        async def count() -> None:
            name = next(names)
            key = await key_of(whole.bus, name, *edges, requests_per_minute=5)
            responses = await statuses(edges, key, 12)
            assert codes(responses) == {200: 5, 429: 7}
            refused = next(response for response in responses if response.status_code == 429)
            assert 0 < int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["llm"]["type"] == "rate_limited"
            assert await read(whole.bus, f"llm.req.*.{name}") == 5

        await within_a_minute(whole.bus, count)


async def read(bus: JetStreamBus, subject: str) -> int:
    return len([letter async for letter in bus.read(REQUESTS, subject)])


async def test_tokens_are_counted_as_expected_before_and_as_used_after() -> None:
    async with two_edges() as (whole, edges):
        names = iter("abc")

        async def count() -> None:
            key = await key_of(whole.bus, next(names), *edges, tokens_per_minute=1_000)
            slow = asyncio.create_task(chat(edges[0], key, max_tokens=900, delay_ms=400, text="바다"))
            async with asyncio.timeout(5):
                while await whole.bus.last("LLM_METERS", "llm.meter.*.tokens.*") is None:
                    await asyncio.sleep(0)
            assert (await chat(edges[1], key, max_tokens=900)).status_code == 429
            assert (await slow).status_code == 200
            assert (await until_answered(edges[1], key, max_tokens=900, text="바" * 3_800)).status_code == 200
            async with asyncio.timeout(5):
                while (await chat(edges[0], key, max_tokens=60)).status_code == 200:
                    pass

        await within_a_minute(whole.bus, count)


async def test_no_more_are_under_way_than_may_be_and_places_come_back() -> None:
    async with two_edges() as (whole, edges):
        key = await key_of(whole.bus, "gm", *edges, concurrent=3)
        responses = await statuses(edges, key, 10, delay_ms=1_000)
        assert codes(responses) == {200: 3, 429: 7}
        assert {r.headers["retry-after"] for r in responses if r.status_code == 429} == {"1"}
        assert (await until_answered(edges[1], key, model="nobody")).status_code == 404
        await until_none_is_open(whole.bus)


async def test_limits_slow_a_batch_down_and_fail_none_of_its_items() -> None:
    async with two_edges() as (whole, (http, _)):
        key = await key_of(whole.bus, "gm", http, concurrent=2)
        ours = asyncio.create_task(chat(http, key, delay_ms=300))
        async with asyncio.timeout(5):
            while not await open_places(whole.bus):
                await asyncio.sleep(0)
        items = [{"prompt": f"{n}번째", "metadata": {"loopback": {"delay_ms": 20}}} for n in range(12)]
        body = (await http.post("/batch", json=items, headers=bearer(key))).json()
        assert (body["succeeded"], body["failed"]) == (12, 0)
        assert (await ours).status_code == 200


async def test_an_item_of_a_batch_waits_no_longer_for_its_clients_limits_than_it_has_time() -> None:
    async with two_edges() as (whole, (http, _)):
        names = iter("abc")

        async def count() -> None:
            key = await key_of(whole.bus, next(names), http, requests_per_minute=1)
            items = [{"prompt": "늦은 것", "deadline_ms": 500}] * 3
            body = (await http.post("/batch", json=items, headers=bearer(key))).json()
            assert (body["succeeded"], body["failed"]) == (1, 2)
            assert {each["error"]["type"] for each in body["results"] if "error" in each} == {"rate_limited"}

        await within_a_minute(whole.bus, count)


async def test_who_is_refused_for_a_place_has_not_used_the_minute() -> None:
    async with two_edges() as (whole, edges):
        names = iter("abc")

        async def count() -> None:
            key = await key_of(whole.bus, next(names), *edges, requests_per_minute=3, concurrent=1)
            slow = asyncio.create_task(chat(edges[0], key, delay_ms=400))
            async with asyncio.timeout(5):
                while not await open_places(whole.bus):
                    await asyncio.sleep(0)
            assert codes(await statuses(edges, key, 5)) == {429: 5}
            assert (await slow).status_code == 200
            assert [(await chat(edges[0], key)).status_code for _ in range(3)] == [200, 200, 429]

        await within_a_minute(whole.bus, count)


async def test_who_asks_one_by_one_is_never_told_that_another_is_under_way() -> None:
    async with two_edges() as (whole, edges):
        http = edges[0]
        key = await key_of(whole.bus, "gm", *edges, concurrent=1)
        assert {(await chat(http, key)).status_code for _ in range(30)} == {200}
        dear = await key_of(whole.bus, "npc-ai", *edges, concurrent=1, usd_per_day="1", tokens_per_minute=10**6)
        assert {(await chat(http, dear)).status_code for _ in range(30)} == {200}


async def test_a_repeated_request_takes_no_second_place() -> None:
    async with two_edges() as (whole, edges):
        key = await key_of(whole.bus, "gm", *edges, concurrent=1, usd_per_day="1")
        running = asyncio.create_task(chat(edges[0], key, rid="once", delay_ms=500, text="섬"))
        async with asyncio.timeout(5):
            while not await open_places(whole.bus):
                await asyncio.sleep(0)
        again = await chat(edges[1], key, rid="once", delay_ms=500, text="섬")
        first = await running
        assert first.json()["choices"] == again.json()["choices"]
        assert (await chat(edges[1], key, rid="once", delay_ms=500, text="섬")).status_code == 200
        await until_none_is_open(whole.bus)
        assert (await chat(edges[1], key, rid="once", text="뭍")).status_code == 409
        await until_none_is_open(whole.bus)


async def test_a_place_ends_with_its_requests_time_should_nobody_give_it_back() -> None:
    async with inside(nodes=False) as whole, edge_on(whole.url) as http:
        meters = Meters(whole.bus)
        place = await meters.take("gm", "lost", 17, ttl_s=1)
        assert await meters.take("gm", "lost", 18, ttl_s=1) == (place.seq, False)
        other = await meters.take("gm", "other", 5, ttl_s=60)
        assert await meters.before("gm", other.seq, at_most=9) == [17]
        async with asyncio.timeout(10):
            while len(await open_places(whole.bus)) == 2:
                await asyncio.sleep(0)
        assert await meters.before("gm", other.seq, at_most=9) == []
        key = await key_of(whole.bus, "npc-ai", http, concurrent=1)
        later = {"x-llm-deadline-ms": "30000", "prefer": "respond-async", "idempotency-key": "r"}
        assert (await http.post(CHAT, json=told(), headers=bearer(key) | later)).status_code == 202
        letter = await whole.bus.last(OPEN, str(Open("npc-ai", "r")))
        assert letter is not None
        assert letter.headers[h.TTL] == "40s"


async def test_the_places_of_an_edge_that_was_killed_come_back() -> None:
    async with inside() as whole:
        key = await key_of(whole.bus, "gm", concurrent=1)
        killed = await asyncio.create_subprocess_exec(
            LLMBUS, "edge", "--port", "0", "--keys", "--nats-url", whole.url, env=environment(),
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert killed.stderr is not None
        address = await _address(killed.stderr)
        async with httpx.AsyncClient(base_url=address, trust_env=False) as http:
            asking = asyncio.create_task(chat(http, key, rid="r", delay_ms=300))
            async with asyncio.timeout(10):
                while not await read(whole.bus, "llm.req.*.gm"):
                    await asyncio.sleep(0)
            killed.kill()
            await killed.wait()
            [gone] = await asyncio.gather(asking, return_exceptions=True)
            assert isinstance(gone, httpx.HTTPError)
        async with asyncio.timeout(10):
            while await whole.bus.last(REPLIES, "llm.res.gm.r") is None:
                await asyncio.sleep(0)
        assert await open_places(whole.bus) == ["llm.open.gm.r"]
        async with edge_on(whole.url, keys=True) as http:
            assert (await chat(http, key)).status_code == 200
            assert (await chat(http, key, rid="r", delay_ms=300)).status_code == 200


async def _address(stderr: asyncio.StreamReader) -> str:
    async with asyncio.timeout(20):
        async for line in stderr:
            if (said := json.loads(line)).get("event") == "edge.ready":
                return str(said["address"])
    raise AssertionError("the edge ended before it was ready")


async def test_a_hundred_at_the_caps_edge_do_not_pass_it() -> None:
    async with two_edges() as (whole, edges):
        key = await key_of(whole.bus, "gm", *edges, usd_per_day="0.02")
        # 0.002 dollars, or 0.006 of the spare one.
        asked: dict[str, Any] = {"max_tokens": 1_000, "text": "바다" * 2_000}
        responses = await statuses(edges, key, 100, **asked)
        assert set(codes(responses)) == {200, 402}
        assert {r.json()["error"]["llm"]["type"] for r in responses if r.status_code == 402} == {"budget_exceeded"}
        await until_none_is_open(whole.bus)
        for _ in range(10):  # what the hundred have left, one by one
            response = await chat(edges[0], key, **asked)
            responses.append(response)
        spent = sum(Decimal(r.headers["x-llm-cost-usd"]) for r in responses if r.status_code == 200)
        assert Decimal("0.02") - Decimal("0.0021") < spent <= Decimal("0.02")
        assert response.status_code == 402
        assert response.headers["x-should-retry"] == "false"
        assert not (await verify(whole.bus, Wanted())).differing


async def test_what_a_client_spends_by_nats_is_spent_of_its_day() -> None:
    async with two_edges() as (whole, edges):
        key = await key_of(whole.bus, "npc-ai", *edges, usd_per_day="0.01")
        dear = LlmRequest.model_validate({"prompt": "섬", "metadata": {"loopback": {"text": "섬" * 24_000}}})
        assert (await chat(edges[0], key, text="섬")).status_code == 200
        await whole.client.ask(dear)
        for http in edges:  # one has heard it, the other reads it
            assert (await chat(http, key, text="섬")).status_code == 402
        await limit(whole.bus, "npc-ai", lift=True, changes={"usd_per_day": "1"})
        assert (await until_paid(edges[1], key)).status_code == 200


async def until_paid(http: httpx.AsyncClient, key: str) -> httpx.Response:
    async with asyncio.timeout(5):
        while (response := await chat(http, key, text="섬")).status_code == 402:
            pass
    return response


async def test_without_money_models_that_cost_nothing_answer() -> None:
    policy = yaml.safe_load(POLICY)
    policy["models"]["ours"] = {**policy["models"]["echo"], "price": {"usd_per_hour": 0}}
    policy["fallbacks"]["default"] = ["spare", "ours"]
    async with two_edges(yaml.safe_dump(policy, sort_keys=False)) as (whole, edges):
        key = await key_of(whole.bus, "gm", *edges, usd_per_day="0")
        response = await chat(edges[0], key)
        assert (response.status_code, response.headers["x-llm-model"]) == (200, "ours")
        assert Decimal(response.headers["x-llm-cost-usd"]) == 0
        rich = await key_of(whole.bus, "npc-ai", *edges, usd_per_day="1")
        response = await chat(edges[0], rich)
        assert response.status_code == 200, response.text
        assert response.headers["x-llm-model"] == "echo"


async def test_no_other_model_answers_a_client_than_its_own() -> None:
    async with two_edges() as (whole, edges):
        key = await key_of(whole.bus, "npc-ai", *edges, models=["echo"], capabilities=["chat"])
        assert (await chat(edges[0], key)).headers["x-llm-model"] == "echo"
        for refused in (await chat(edges[0], key, model="spare"), await chat(edges[1], key, model="code")):
            assert refused.status_code == 403
            assert refused.json()["error"]["llm"]["type"] == "forbidden"
        shown = (await edges[0].get("/v1/models", headers=bearer(key))).json()["data"]
        assert {"echo", "auto", "fast"} <= (names := {each["id"] for each in shown})
        assert "spare" not in names
        assert (await edges[0].get("/v1/models/spare", headers=bearer(key))).status_code == 404
        failed = await chat(edges[1], key, rid="r", fail="server_error")
        assert failed.status_code == 502
        reply = await whole.client.result("r")
        assert reply is not None
        assert {attempt.model for attempt in reply.attempts} == {"echo"}
        free = await key_of(whole.bus, "gm", *edges)
        await chat(edges[1], free, rid="s", fail="server_error")
        assert not (await verify(whole.bus, Wanted())).differing


async def test_limits_hold_when_the_broker_was_killed_and_is_back(broker: OwnBroker) -> None:
    later = {"prefer": "respond-async"}
    async with edge_on(broker.url, keys=True) as http, open_bus(broker.url, name="looking") as bus:
        key = await key_of(
            bus, "gm", http, requests_per_minute=1_000, tokens_per_minute=10**6, concurrent=1, usd_per_day="1"
        )
        assert (await http.post(CHAT, json=told(), headers=bearer(key) | later)).status_code == 202
        broker.kill()
        away = await http.post(CHAT, json=told(), headers=bearer(key) | later)
        assert (away.status_code, away.headers["retry-after"]) == (503, "2")
        broker.start()
        async with asyncio.timeout(20):
            while (again := await http.post(CHAT, json=told(), headers=bearer(key) | later)).status_code == 503:
                pass
        assert again.status_code == 202
        assert (await http.post(CHAT, json=told(), headers=bearer(key) | later)).status_code == 429


async def test_other_limits_hold_at_once() -> None:
    async with two_edges() as (whole, edges):
        key = await key_of(whole.bus, "gm", *edges, capabilities=["code"])
        assert (await chat(edges[0], key)).status_code == 403
        await limit(whole.bus, "gm", lift=True, changes={})
        async with asyncio.timeout(1):
            while (await chat(edges[1], key)).status_code == 403:
                pass
