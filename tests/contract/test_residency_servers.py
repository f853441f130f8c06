"""Servers of one model, and a llama-server's router mode as far as its words go; the real one is in `tests/peers`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from adapters.providers import Backend, Setup, build, residency
from router.errors import AttemptError
from router.ports import Held, Residency
from schemas.failure import FailureKind
from schemas.policy import Residence
from tests.support.scripted_upstream import Exchange, ScriptedUpstream

MODEL = "꼬마:1b"
LOADING = b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'


@asynccontextmanager
async def over(
    kind: Residence, url: str, names: tuple[str, ...] = (MODEL,), load_ms: int = 5_000
) -> AsyncIterator[Residency]:
    setup = Setup(
        url + "/v1", dict.fromkeys(names, Backend(load_ms=load_ms)), (SecretStr("sk-canary"),), ("CANARY_KEY",)
    )
    provider = build("openai", setup)
    held = residency(kind, setup, provider)
    assert held is not None
    try:
        yield held
    finally:
        await held.aclose()
        await provider.aclose()


async def failing(doing: Any) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        await doing
    return caught.value


def listed(*names: str) -> bytes:
    return json.dumps({"data": [{"id": name} for name in names]}).encode()


async def test_one_model_is_looked_at_waited_for_and_not_changed() -> None:
    async def starting(exchange: Exchange) -> None:
        if len(upstream.exchanges) < 3:
            await exchange.reply(503, LOADING)
        else:
            await exchange.reply(200, listed(MODEL))

    async with ScriptedUpstream(starting) as upstream, over("single", upstream.url) as held:
        assert held.fixed
        await held.load(MODEL)
        assert [one.path for one in upstream.exchanges] == ["/v1/models"] * 3
        assert await held.models() == {MODEL: Held()}
        error = await failing(held.unload(MODEL))
        assert error.failure.kind is FailureKind.UNUSABLE
        assert "stop that server" in error.failure.message


async def test_one_model_that_is_another_or_does_not_come() -> None:
    async with ScriptedUpstream(lambda exchange: exchange.reply(200, listed("다른-것"))) as upstream:
        async with over("single", upstream.url) as held:
            assert await held.models() == {}
            error = await failing(held.load(MODEL))
            assert error.failure.kind is FailureKind.UNUSABLE
            assert f"does not offer {MODEL}" in error.failure.message
        upstream.script = lambda exchange: exchange.reply(503, LOADING)
        async with over("single", upstream.url, load_ms=50) as held:
            error = await failing(held.load(MODEL))
            assert error.failure.kind is FailureKind.CONNECTION
            assert "Loading model" in error.failure.message


def row(name: str, state: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "status": {"value": state}, **more}


def answering(*rows: dict[str, Any], places: Any = 2) -> Any:
    """A router mode in which nothing changes."""
    pages = {"/models": {"data": rows}, "/props": {"role": "router", "max_instances": places}}

    async def script(exchange: Exchange) -> None:
        assert exchange.headers["authorization"] == "Bearer sk-canary"
        if exchange.method == "POST":
            await exchange.reply(400, b'{"error":{"code":400,"message":"model is already running"}}')
        else:
            await exchange.reply(200, json.dumps(pages[exchange.path]).encode())

    return script


async def test_the_states_of_a_router_mode() -> None:
    rows = [
        row("a", "loaded", meta={"n_ctx": 4096}),
        row("b", "loading"),
        row("c", "unloaded", exit_code=1, failed=True),
        row("d", "sleeping"),
        row("e", "of a later version"),
        row("ggml-org/꼬마:Q4", "loaded", aliases=[MODEL]),
    ]
    async with ScriptedUpstream(answering(*rows)) as upstream, over("llama-server", upstream.url) as held:
        assert not held.fixed
        assert await held.models() == {
            "a": Held(context_tokens=4096),
            "b": Held(loading=True),
            MODEL: Held(),
        }
        await held.load(MODEL)
        assert all(one.method == "GET" for one in upstream.exchanges)


async def test_places_count_whatever_takes_one() -> None:
    rows = [row("a", "loading"), row("b", "sleeping"), row("c", "of a later version"), row(MODEL, "unloaded")]
    async with ScriptedUpstream(answering(*rows)) as upstream, over("llama-server", upstream.url) as held:
        error = await failing(held.load(MODEL))
        assert error.failure.kind is FailureKind.INSUFFICIENT_MEMORY
        assert "which holds a, b, c: unload one first, or start it with --models-max above 2" in error.failure.message
        upstream.script = answering(*rows, places=0)  # any number
        assert (await failing(held.load(MODEL))).failure.status == 400
        upstream.script = answering(*rows, places="many")
        assert (await failing(held.load(MODEL))).failure.kind is FailureKind.MALFORMED


@pytest.mark.parametrize("page", [b"<html>", b"{}", listed(MODEL), b'{"data":[{"id":"a","status":{"value":7}}]}'])
async def test_a_page_without_states_is_malformed(page: bytes) -> None:
    async with (
        ScriptedUpstream(lambda exchange: exchange.reply(200, page)) as upstream,
        over("llama-server", upstream.url) as held,
    ):
        assert (await failing(held.models())).failure.kind is FailureKind.MALFORMED


async def test_an_unload_that_does_not_happen_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.providers.llama_server.UNLOAD_MS", 50)

    async def stuck(exchange: Exchange) -> None:
        rows = {"data": [row(MODEL, "loaded")]}
        await exchange.reply(200, json.dumps(rows).encode() if exchange.method == "GET" else b'{"success":true}')

    async with ScriptedUpstream(stuck) as upstream, over("llama-server", upstream.url) as held:
        error = await failing(held.unload(MODEL))
        assert error.failure.kind is FailureKind.SILENCE
        assert [one.json() for one in upstream.exchanges if one.method == "POST"] == [{"model": MODEL}]
