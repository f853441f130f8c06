"""Callers of an edge, down to the bytes: what they send, what they are told, and what they cost it and each other."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import psutil

from router.errors import stop

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
ASKED: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "항구를 묘사해 줘"}]}


def told(response: httpx.Response) -> dict[str, Any]:
    """The typed error of a refusal, which names its request."""
    error: dict[str, Any] = response.json()["error"]
    typed: dict[str, Any] = error.get("llm", error)
    assert typed["request_id"] == response.headers["x-llm-request-id"]
    assert typed["message"]
    return typed


def parsed(answer: bytes) -> httpx.Response:
    """The first response in what a connection said."""
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = headers_of(head)
    body = body[: int(headers["content-length"])]
    return httpx.Response(int(head.split()[1]), headers=headers, content=body)


def headers_of(head: bytes) -> httpx.Headers:
    _, *lines = head.decode().strip().split("\r\n")
    return httpx.Headers([(name, value) for name, _, value in (line.partition(": ") for line in lines)])


def posted(body: bytes) -> bytes:
    return b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


@asynccontextmanager
async def connected(http: httpx.AsyncClient) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the edge without any HTTP on it."""
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def raw(http: httpx.AsyncClient, request: bytes) -> httpx.Response:
    """What is answered to these bytes, until the edge closes."""
    async with connected(http) as (reader, writer), asyncio.timeout(10):
        writer.write(request)
        return parsed(await reader.read())


@asynccontextmanager
async def at_most(grown_bytes: int, process: psutil.Process) -> AsyncIterator[None]:
    """What a process holds more within the block stays under `grown_bytes`."""
    before = most = process.memory_info().rss

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, process.memory_info().rss)
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        await stop(looking)
    print(f"grown by {(most - before) / 1e6:.1f} MB")
    assert most - before < grown_bytes


@asynccontextmanager
async def fair(http: httpx.AsyncClient) -> AsyncIterator[None]:
    """All the while another caller is answered, each time within a second."""
    slowest, answered, over = 0.0, 0, False
    async with httpx.AsyncClient(base_url=http.base_url, timeout=30, trust_env=False) as other:
        await other.post(CHAT, json=ASKED)

        async def ask() -> None:
            nonlocal slowest, answered
            while not over:
                began = time.monotonic()
                assert (await other.post(CHAT, json=ASKED)).status_code == 200
                slowest, answered = max(slowest, time.monotonic() - began), answered + 1

        asking = asyncio.create_task(ask())
        try:
            yield
        finally:
            over = True
            await asking
    print(f"{answered} others answered, slowest {slowest * 1000:.0f} ms")
    assert answered
    assert slowest < 1.0
