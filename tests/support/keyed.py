"""Clients with keys and limits, and what they ask of an edge, for tests."""

from typing import Any

import httpx

from adapters.bus import JetStreamBus
from ops.client_keys import create

CHAT = "/v1/chat/completions"


async def key_of(bus: JetStreamBus, name: str, **limits: Any) -> str:
    """A key of a client that is made with these limits, if there is none yet."""
    return (await create(bus, name, note="", changes=limits)).text


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
