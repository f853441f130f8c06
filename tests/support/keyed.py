"""Clients with keys and limits, and what they ask of an edge, for tests."""

import asyncio
from typing import Any

import httpx

from adapters.bus import JetStreamBus
from ops.client_keys import create

CHAT = "/v1/chat/completions"
EMPTY: dict[str, Any] = {"messages": []}
"""Refused as soon as it is known who asks."""


async def key_of(bus: JetStreamBus, name: str, *edges: httpx.AsyncClient, **limits: Any) -> str:
    """A key of a client that is made, with these limits, if there is none yet; the edges know it."""
    key = (await create(bus, name, note="", changes=limits)).text
    await taken(key, *edges)
    return key


async def refuses(http: httpx.AsyncClient, key: str) -> bool:
    return (await http.post(CHAT, json=EMPTY, headers=bearer(key))).status_code == 401


async def taken(key: str, *edges: httpx.AsyncClient) -> None:
    """Every one of these edges takes it, as soon as they have heard of it."""
    async with asyncio.timeout(10):
        for http in edges:
            while await refuses(http, key):
                pass


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def told(prompt: str = "항구를 묘사해 줘", max_tokens: int | None = None, **loopback: Any) -> dict[str, Any]:
    """A chat whose loopback behaves as told."""
    body: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
    return body | {"max_tokens": max_tokens, "metadata": {"loopback": loopback}}


async def chat(http: httpx.AsyncClient, key: str, *, rid: str | None = None, **asked: Any) -> httpx.Response:
    headers = bearer(key) | ({"idempotency-key": rid} if rid else {})
    model = {"model": asked.pop("model")} if "model" in asked else {}
    return await http.post(CHAT, json=told(**asked) | model, headers=headers)
