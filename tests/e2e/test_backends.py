"""Backends behind the bus: Ollama and an OpenAI-compatible API are used where they are, and replaced when they fail."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest

from adapters.client import RequestFailedError
from ops.node import node
from schemas import LlmRequest
from subjects.streams import EVENTS, OUTCOMES, REPLIES, REQUESTS, WORK
from tests.support.fake_ollama import FakeModel, FakeOllama
from tests.support.inside import Inside, inside
from tests.support.scripted_upstream import Exchange, ScriptedUpstream

CANARY = "sk-" + "canary-7f3a9b2c4d5e6f708192"
POLICY = """
version: 1
nodes:
  mini: {{urls: {{ollama: "{ollama}"}}}}
  cloud: {{}}
providers:
  ollama: {{dialect: ollama}}
  api: {{dialect: openai, url: "{api}", keys: [CANARY_KEY]}}
models:
  coder:
    nodes: [mini]
    provider: ollama
    backend: qwen3-coder:32b
    role: coder
    context_tokens: 32000
    quality: 0.7
    tokens_per_s: 20
    price: {{input_usd_per_mtok: 0, output_usd_per_mtok: 0}}
  gpt:
    nodes: [cloud]
    provider: api
    backend: gpt-4.1
    context_tokens: 100000
    quality: 0.9
    tokens_per_s: 80
    price: {{input_usd_per_mtok: 2, output_usd_per_mtok: 8}}
capabilities:
  code: {{models: [coder]}}
default: {{models: [coder]}}
fallbacks: {{default: [gpt]}}
"""
MODELS = {"data": [{"id": "gpt-4.1"}]}
COMPLETION = (
    'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "클라우드의 "}}]}\n\n'
    'data: {"choices": [{"index": 0, "delta": {"content": "답"}, "finish_reason": "stop"}]}\n\n'
    'data: {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}}\n\n'
    "data: [DONE]\n\n"
)


async def api(exchange: Exchange) -> None:
    if exchange.path.endswith("/models"):
        await exchange.reply(200, json.dumps(MODELS).encode())
    else:
        await exchange.stream(COMPLETION.encode())


@asynccontextmanager
async def backends(
    ollama: FakeOllama, environ: Mapping[str, str] = {"CANARY_KEY": CANARY}
) -> AsyncIterator[tuple[Inside, ScriptedUpstream]]:
    """The bus with both nodes on these backends, nothing standing in."""
    async with ScriptedUpstream(api) as upstream:
        policy = POLICY.format(ollama=ollama.url, api=upstream.url)
        async with inside(nodes=False, policy=policy) as whole:
            for name in ("mini", "cloud"):
                await whole.stack.enter_async_context(node(whole.url, name, environ=environ))
            async with asyncio.timeout(5):
                while whole.book is None or len(whole.book.nodes) < 2:
                    await asyncio.sleep(0.01)
            yield whole, upstream


async def test_a_local_model_answers_when_its_ollama_is_there() -> None:
    async with (
        FakeOllama({"qwen3-coder:32b": FakeModel(answer=("안녕", "하세요"))}) as ollama,
        backends(ollama) as (whole, _),
    ):
        reply = await whole.client.ask("인사해 주세요", capability="code")
        assert reply.message is not None
        assert (reply.message.content, reply.provider, reply.node) == ("안녕하세요", "ollama", "mini")
        assert (reply.backend, reply.agent_role, reply.notice) == ("qwen3-coder:32b", "coder", None)
        assert reply.cost_usd == 0
        assert ollama.chats[0]["options"]["num_ctx"] == 32_000


async def test_a_model_that_is_not_pulled_is_passed_over_for_the_cloud_and_priced() -> None:
    async with FakeOllama({}) as ollama, backends(ollama) as (whole, _):
        reply = await whole.client.ask("인사해 주세요", capability="code")
        assert reply.message is not None
        assert (reply.message.content, reply.provider, reply.model) == ("클라우드의 답", "api", "gpt")
        assert reply.cost_usd == Decimal("0.0006")
        assert reply.usage is not None
        assert (reply.usage.tokens_in, reply.usage.tokens_out) == (100, 50)


async def test_a_local_model_that_fails_is_tried_once_more_then_replaced() -> None:
    spoilt = FakeOllama({"qwen3-coder:32b": FakeModel()}, faults=deque(["error_first", "error_first"]))
    async with spoilt as ollama, backends(ollama) as (whole, _):
        reply = await whole.client.ask("x", capability="code")
        assert [(a.model, a.failure.kind if a.failure else None) for a in reply.attempts] == [
            ("coder", "server_error"),
            ("coder", "server_error"),
            ("gpt", None),
        ]
        assert reply.provider == "api"


async def test_without_any_backend_it_says_so_and_stands_in_for_nobody() -> None:
    nowhere = "http://127.0.0.1:9"
    async with inside(nodes=False, policy=POLICY.format(ollama=nowhere, api=nowhere)) as whole:
        for name in ("mini", "cloud"):
            await whole.stack.enter_async_context(node(whole.url, name, environ={}))
        with pytest.raises(RequestFailedError) as failed:
            await whole.client.ask(LlmRequest(prompt="x", deadline_ms=600), capability="code")
        assert failed.value.error.type in ("deadline_exceeded", "overloaded")
        why = [state.why_not or "" for view in whole.book.nodes.values() for state in view.models.values()]  # type: ignore[union-attr]
        assert any("CANARY_KEY" in words for words in why), "a missing key is named by its variable"
        assert any("cannot be reached" in words for words in why)


async def test_keys_take_turns_and_stand_nowhere_but_in_the_call(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# 두 번째 계정\n{CANARY}-2\n\n{CANARY}-3\n", encoding="utf-8")
    environ = {"CANARY_KEY": f"{CANARY}-0, {CANARY}-1", "CANARY_KEY_FILE": str(file)}
    async with FakeOllama({}) as ollama, backends(ollama, environ) as (whole, upstream):
        await asyncio.gather(*(whole.client.ask(f"{n}", capability="code") for n in range(8)))
        chats = [exchange for exchange in upstream.exchanges if not exchange.path.endswith("/models")]
        assert {exchange.headers["authorization"] for exchange in chats} == {f"Bearer {CANARY}-{n}" for n in range(4)}
        for stream in (REQUESTS, WORK, OUTCOMES, EVENTS, REPLIES, "KV_llm_nodes", "KV_llm_policy"):
            async for letter in whole.bus.read(stream):
                assert CANARY.encode() not in letter.data
                assert CANARY not in str(letter.headers)
    assert CANARY not in "".join(capfd.readouterr())
