"""Many streams of one client through one edge: each hears its own pieces, and all of them, on one subscription."""

import asyncio
import json

import httpx

from tests.support.edge import edge_on
from tests.support.inside import Inside, inside

STREAMS = 20
PIECES = 12


async def test_streams_of_one_client_at_the_same_time_are_each_whole_and_their_own() -> None:
    async with inside() as whole, edge_on(whole.url) as http:
        subscriptions = await _subscriptions(whole)
        texts = [f"안개 낀 항구 {n}: " + f"{n} 척의 배 " * PIECES for n in range(STREAMS)]
        assert await asyncio.gather(*(_streamed(http, text) for text in texts)) == texts
        # The client's replies and its pieces; none is left of any stream.
        assert await _subscriptions(whole) == subscriptions + 2
        assert await asyncio.gather(*(_streamed(http, text) for text in texts)) == texts
        assert await _subscriptions(whole) == subscriptions + 2


async def _streamed(http: httpx.AsyncClient, text: str) -> str:
    told = {"loopback": {"text": text, "pieces": PIECES}}
    body = {"messages": [{"role": "user", "content": "배를 세어 줘"}], "stream": True, "metadata": told}
    response = await http.post("/v1/chat/completions", json=body)
    *events, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert done == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    assert sum(map(bool, deltas)) == PIECES
    return "".join(deltas)


async def _subscriptions(whole: Inside) -> int:
    """Of the edge's connection, by the broker's count."""
    answer = await whole.bus.client.request("$SYS.REQ.SERVER.PING.CONNZ", b'{"subscriptions": true}', timeout=5)
    connections = json.loads(answer.data)["data"]["connections"]
    return int(next(each["subscriptions"] for each in connections if each["name"] == "llmbus edge"))
