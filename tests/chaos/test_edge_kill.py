"""kill -9 of an edge, a router, an executor and the broker under streams: each ends whole or says that it does not."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.support.bus import LLMBUS, LiveBus, Role, live_bus

STREAMS = 50
PIECES = 40
ASYNC = {"prefer": "respond-async"}
CHAT = "/v1/chat/completions"
TEXT = " ".join(f"{n}번째 손님이 항구로 들어온다." for n in range(PIECES))
ANSWERED_S = 20.0


def asked(rid: str, *, piece_ms: int) -> dict[str, Any]:
    return {
        "model": "auto",
        "messages": [{"role": "user", "content": f"항구를 묘사해 줘 {rid}"}],
        "stream": True,
        "metadata": {"loopback": {"text": f"{rid}: {TEXT}", "pieces": PIECES, "piece_ms": piece_ms}},
    }


class LiveEdge:
    """An `llmbus edge` of its own process, that can be killed."""

    def __init__(self, bus: LiveBus, name: str) -> None:
        log = bus.directory / f"{name}.log"
        self.role = Role([str(LLMBUS), "edge", "--port", "0", "--nats-url", bus.url], log)

    async def ready(self) -> str:
        """Start it; its address, as its log tells it."""
        self.role.start()
        async with asyncio.timeout(10):
            while not (found := re.search(r'"address": "([^"]+)"', self.role.log.read_text())):
                await asyncio.sleep(0.02)
        return found[1]


@asynccontextmanager
async def edges(bus: LiveBus, count: int) -> AsyncIterator[list[tuple[LiveEdge, httpx.AsyncClient]]]:
    made = [LiveEdge(bus, f"edge{n}") for n in range(count)]
    async with AsyncExitStack() as stack:
        for each in made:
            stack.callback(each.role.stop)
        addresses = await asyncio.gather(*(each.ready() for each in made))
        limits = httpx.Limits(max_connections=None)
        clients = [httpx.AsyncClient(base_url=at, timeout=30, limits=limits, trust_env=False) for at in addresses]
        for client in clients:
            await stack.enter_async_context(client)
        yield list(zip(made, clients, strict=True))


async def told(http: httpx.AsyncClient, rid: str) -> dict[str, Any]:
    """How it ended."""
    async with asyncio.timeout(ANSWERED_S):
        while True:
            response = await http.get(f"/v1/requests/{rid}")
            if response.status_code == 200 and response.json()["reply"] is not None:
                return dict(response.json())
            await asyncio.sleep(0.1)


@pytest.mark.chaos
@pytest.mark.timeout(60)
async def test_streams_go_on_at_another_edge_when_their_own_is_killed() -> None:
    async with live_bus() as live, edges(live, 2) as ((first, http), (_, another)):
        await http.post(CHAT, json=asked("watched", piece_ms=25), headers={"idempotency-key": "watched", **ASYNC})
        watching = until_killed(first, events(http, "watched"))
        headers = {"idempotency-key": "chat", "x-llm-event-ids": "true"}
        chatting = until_killed(first, chat(http, asked("chat", piece_ms=25), headers))
        for rid, before in zip(("watched", "chat"), await asyncio.gather(watching, chatting), strict=True):
            *after, reply = [event async for event in events(another, rid, before[-1]["id"])]
            assert 0 < len(before) < PIECES, "it was killed amid them"
            pieces = before + after
            assert [piece["id"] for piece in pieces] == [f"1.1:{n}" for n in range(PIECES)], "no gap and no repeat"
            assert "".join(map(text_of, pieces)) == reply["message"]["content"] == f"{rid}: {TEXT}"
            assert (await told(another, rid))["state"] == "ok"


def text_of(event: dict[str, Any]) -> str:
    return str(event["text"] if "text" in event else event["choices"][0]["delta"]["content"])


async def until_killed(edge: LiveEdge, coming: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """What came before it was killed, at the tenth at the latest."""
    came = []
    try:
        async for event in coming:
            came.append(event)
            if len(came) == 10:
                edge.role.kill()
    except httpx.RemoteProtocolError:
        return came
    raise AssertionError("a killed edge ended its stream properly")


async def events(http: httpx.AsyncClient, rid: str, after: str = "") -> AsyncIterator[dict[str, Any]]:
    """As they come, behind one of them."""
    headers = {"last-event-id": after} if after else {}
    async with http.stream("GET", f"/v1/requests/{rid}/events", headers=headers) as response:
        async for event in sent(response):
            yield event


async def chat(
    http: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str]
) -> AsyncIterator[dict[str, Any]]:  # fmt: skip
    async with http.stream("POST", CHAT, json=body, headers=headers) as response:
        async for event in sent(response):
            yield event


async def sent(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The data of each event, with its id and its name."""
    assert response.status_code == 200
    event: dict[str, Any] = {}
    place: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name in ("id", "event"):
            place[name] = value
        elif name == "data":
            event = json.loads(value)
        elif not line and event:
            yield event | place
            event, place = {}, {}


@pytest.mark.chaos
@pytest.mark.timeout(60)
@pytest.mark.parametrize("victim", ["router0", "bench", "nats"])
async def test_of_streams_under_way_none_is_silently_short(victim: str) -> None:
    async with live_bus() as live, edges(live, 1) as ((_, http),):
        under_way = asyncio.Semaphore(0)

        async def stream(rid: str) -> tuple[str, bool]:
            """What was said, and whether it ended as whole; else it said that it did not."""
            said: list[str] = []
            async with http.stream(
                "POST", CHAT, json=asked(rid, piece_ms=50), headers={"idempotency-key": rid}
            ) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        return "".join(said), True
                    if line.startswith("data: "):
                        event = json.loads(line.removeprefix("data: "))
                        if "error" in event:
                            assert event["error"]["llm"]["request_id"] == rid
                            return "".join(said), False
                        said += [choice["delta"].get("content", "") for choice in event["choices"]]
                        if len(said) == 3:
                            under_way.release()
            raise AssertionError(f"{rid} ended without a word after {len(said)} pieces")

        streams = [asyncio.create_task(stream(f"r{n}")) for n in range(STREAMS)]
        for _ in range(STREAMS):
            await under_way.acquire()
        assert not any(task.done() for task in streams)
        await asyncio.to_thread(live.restart, victim)
        ends = await asyncio.gather(*streams)
        for n, (said, whole) in enumerate(ends):
            full = f"r{n}: {TEXT}"
            assert said == full if whole else full.startswith(said), f"r{n} said {said!r}"
            state = await told(http, f"r{n}")
            assert (state["state"], state["reply"]["message"]["content"]) == ("ok", full)
        if victim == "bench":
            assert not any(whole for _, whole in ends), "what was killed amid its pieces cannot be whole"
        if victim == "router0":
            assert all(whole for _, whole in ends), "a router that comes back is only waited for"
        if victim == "nats":
            rid = (await http.post(CHAT, json=asked("later", piece_ms=1), headers=ASYNC)).json()["id"]
            await told(http, rid)
            kept = [event["event"] async for event in events(http, rid)]
            assert kept == ["piece"] * PIECES + ["reply"], "pieces are kept again"
