"""The broker goes and comes back under an edge: it says so at once, and goes on by itself."""

import asyncio
import signal
import time
from typing import Any

import httpx
import psutil

from tests.support.edge import edge_on
from tests.support.nats_server import OwnBroker
from tests.support.running_bus import running_bus

CHAT = "/v1/chat/completions"
REFUSED_S = 3.0
"""2 s are stated; the rest is for a machine that does much else."""
FOUND_S = 8.0
"""A connection that went deaf would be noticed by its pings only, after ten seconds and more."""
PIECES = 20


def asked(text: str = "항구를 묘사해 줘", **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}


async def refused(http: httpx.AsyncClient, n: int) -> None:
    began = time.monotonic()
    response = await http.post(CHAT, json=asked(f"{n}번", stream=bool(n % 2)))
    assert time.monotonic() - began < REFUSED_S
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    error = response.json()["error"]["llm"]
    assert (error["type"], error["request_id"]) == ("storage_unavailable", response.headers["x-llm-request-id"])


async def streamed(http: httpx.AsyncClient, n: int, begun: asyncio.Event) -> str:
    """What a stream of pieces that takes some seconds says, until it ends."""
    told = {"loopback": {"text": f"{n} " * PIECES, "pieces": PIECES, "piece_ms": 50}}
    said = ""
    async with http.stream("POST", CHAT, json=asked(stream=True, metadata=told, deadline_ms=8_000)) as response:
        async for text in response.aiter_text():
            said += text
            begun.set()
    return said


async def test_a_broker_that_goes_is_told_in_time_and_one_that_comes_back_is_found(broker: OwnBroker) -> None:
    async with running_bus(broker.url), edge_on(broker.url) as http:
        assert (await http.post(CHAT, json=asked())).status_code == 200
        begun = [asyncio.Event() for _ in range(10)]
        running = [asyncio.create_task(streamed(http, n, event)) for n, event in enumerate(begun)]
        await asyncio.gather(*(event.wait() for event in begun))
        broker.kill()
        await asyncio.gather(*(refused(http, n) for n in range(10)))
        assert (await http.get("/docs")).status_code == 200
        assert (await http.get("/openapi.json")).status_code == 200
        assert (await http.get("/v1/nothing")).status_code == 404
        broker.start()
        async with asyncio.timeout(20):
            while (await http.post(CHAT, json=asked("돌아왔니?"))).status_code != 200:
                await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            for said in await asyncio.gather(*running):
                whole = said.rstrip().endswith("data: [DONE]")
                assert whole != ('"error":' in said.rpartition("data: ")[2]), said[-500:]


async def test_a_broker_that_hangs_is_told_in_time_too(broker: OwnBroker) -> None:
    async with running_bus(broker.url), edge_on(broker.url) as http:
        assert (await http.post(CHAT, json=asked())).status_code == 200
        broker.server.send_signal(signal.SIGSTOP)
        while psutil.Process(broker.server.pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0)
        try:
            await refused(http, 1)
        finally:
            broker.server.send_signal(signal.SIGCONT)
        async with asyncio.timeout(FOUND_S):
            while (await http.post(CHAT, json=asked("다시?", stream=True))).status_code != 200:
                await asyncio.sleep(0.1)
