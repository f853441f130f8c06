"""An edge that is told to end: answers under way have their time, then they are cut off, say so, and live on."""

import asyncio
import json

import httpx
import pytest

from ops import edge as served
from subjects.streams import CANCELS, CHUNKS, EVENTS
from tests.e2e.test_edge_requests import ASYNC, CHAT, KOREAN, SOON_S, asked, key, said, until
from tests.e2e.test_edge_streams import ends_with_an_error, events, texts
from tests.support.edge import Edges, edge_on
from tests.support.faults import TOKENS, Held
from tests.support.inside import Inside
from tests.support.upstreams import patient, upstreams

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_edge_that_ends_lets_the_answers_under_way_finish(two: Edges) -> None:
    whole, own = two.whole, {"x-llm-client": two.client}
    async with httpx.AsyncClient(timeout=30, trust_env=False, headers=own) as http:
        async with served.edge(whole.url, port=0) as address:
            asking = [
                asyncio.create_task(http.post(address + CHAT, json=body, headers=key(f"r{n}")))
                for n, body in enumerate((asked(delay_ms=500), asked(stream=True, pieces=20, piece_ms=25)))
            ]
            await running(whole, two.client, "r0", "r1")
        plain, stream = [(await task).text for task in asking]
        assert json.loads(plain)["choices"][0]["message"]["content"] == said(stream) == KOREAN
        assert await whole.bus.last(CANCELS, f"llm.cancel.{two.client}.*") is None
        with pytest.raises(httpx.ConnectError):
            await http.get(address)


async def test_what_outlasts_its_grace_is_told_so_and_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "GRACE_S", 0.1)
    go = asyncio.Event()
    async with upstreams(patient) as up, httpx.AsyncClient(timeout=30, trust_env=False) as http:
        up.primary.script = Held(go)
        async with served.edge(up.bus.url, port=0) as address:
            asking = [
                asyncio.create_task(http.post(address + CHAT, json=asked(stream=stream), headers=key(f"r{stream:d}")))
                for stream in (False, True)
            ]
            await running(up.bus, "local", "r0", "r1")
        plain, stream = await asyncio.gather(*asking)
        assert (plain.status_code, plain.json()["error"]["code"]) == (502, "upstream_interrupted")
        assert "/v1/requests/r1" in ends_with_an_error(stream.text)["message"]
        assert await up.bus.bus.last(CANCELS, ">") is None
        go.set()
        async with edge_on(up.bus.url) as another:
            for rid in ("r0", "r1"):
                told = await until(another, rid, "ok", "cancelled", "error")
                assert told["reply"]["message"]["content"] == "".join(TOKENS[:5])


async def test_an_edge_that_ends_waits_for_nobody_who_only_watches() -> None:
    async with upstreams(patient) as up, httpx.AsyncClient(timeout=30, trust_env=False) as http:
        go = asyncio.Event()
        up.primary.script = Held(go)
        async with asyncio.timeout(SOON_S), served.edge(up.bus.url, port=0) as address:
            await http.post(address + CHAT, json=asked(stream=True), headers=key("r1", **ASYNC))
            await running(up.bus, "local", "r1")
            watch = http.build_request("GET", f"{address}/v1/requests/r1/events")
            lines = (await http.send(watch, stream=True)).aiter_lines()
            heard = [await anext(lines)]
        go.set()
        heard += [line async for line in lines]
        seen = events("\n".join(heard))
        assert texts(seen) == "".join(TOKENS[: len(seen)])
        assert all(event["name"] == "piece" for event in seen)


async def running(whole: Inside, client: str, *rids: str) -> None:
    """Wait until each is being answered, and its first pieces are out."""
    async with asyncio.timeout(SOON_S):
        for rid in rids:
            while await whole.bus.last(EVENTS, f"llm.evt.{client}.{rid}.attempt_started") is None:
                await asyncio.sleep(0.01)
        while await whole.bus.last(CHUNKS, f"llm.chunk.{client}.{rids[-1]}.*") is None:
            await asyncio.sleep(0.01)
