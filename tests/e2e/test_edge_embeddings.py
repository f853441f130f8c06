"""OpenAI's embeddings through the edge, by its own client and LangChain's: durable, priced, of one model or of none."""

import json
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Final

import httpx
import openai
import pytest
import yaml
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from ops.node import node
from router.core.replay import differences
from router.errors import RequestFailedError
from schemas import LlmRequest, Reply
from schemas.decision import Decided
from schemas.vectors import unpacked
from subjects import Event, Request, parse
from subjects.streams import EVENTS, REQUESTS
from tests.support.edge import edge_on
from tests.support.fake_ollama import FakeModel, FakeOllama
from tests.support.inside import POLICY, Inside, inside

TEXTS: Final = ["항구에 안개가 낀다", "A harbour in the fog", "항구에 안개가 낀다"]
LOOPBACK: Final = {"nodes": ["bench"], "provider": "loopback", "embeds": True, "quality": 0.5, "tokens_per_s": 1000}


def policy() -> str:
    """`vectors` and `others` embed, `echo` and `spare` chat."""
    made: dict[str, Any] = yaml.safe_load(POLICY)
    made["models"]["vectors"] = {
        **LOOPBACK, "backend": "text-embedding-3-small", "context_tokens": 8000, "slots": 8,
        "price": {"input_usd_per_mtok": 1},
    }  # fmt: skip
    made["models"]["others"] = {**LOOPBACK, "backend": "others", "context_tokens": 8000, "price": {"usd_per_hour": 1}}
    made["capabilities"]["embed"] = {"models": ["vectors"]}
    made["aliases"]["near"] = {"models": ["vectors"]}
    return yaml.safe_dump(made, sort_keys=False)


@asynccontextmanager
async def embedding(**wish: Any) -> AsyncIterator[tuple[Inside, httpx.AsyncClient, openai.AsyncOpenAI]]:
    async with (
        inside(policy=policy(), **wish) as whole,
        edge_on(whole.url) as http,
        openai.AsyncOpenAI(base_url=f"{http.base_url}/v1", api_key="x", max_retries=0) as client,
    ):
        yield whole, http, client


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


async def test_openais_client_gets_vectors_whichever_way_they_are_written() -> None:
    async with embedding() as (_, _http, client):
        packed = await client.embeddings.create(model="auto", input=TEXTS)  # base64, as it likes it
        plain = await client.embeddings.create(model="near", input=TEXTS, encoding_format="float", dimensions=256)
        raw = await client.embeddings.with_raw_response.create(model="text-embedding-3-small", input=TEXTS[0])
        assert [each.embedding for each in packed.data] == [each.embedding for each in plain.data]
        assert [each.index for each in packed.data] == [0, 1, 2]
        first, second, again = (each.embedding for each in packed.data)
        assert cosine(first, again) == pytest.approx(1)
        assert abs(cosine(first, second)) < 0.5
        assert math.hypot(*first) == pytest.approx(1, abs=1e-6)
        assert raw.parse().data[0].embedding == first
        assert (packed.model, packed.usage.prompt_tokens, packed.usage.total_tokens) == ("vectors", 11, 11)
        assert raw.headers["x-llm-cost-usd"] == "0.000003"
        assert raw.headers["x-llm-decision"].startswith("vectors@bench route=model:vectors")


async def test_shorter_vectors_and_other_models_are_the_clients_choice() -> None:
    async with embedding() as (_, _http, client):
        short = await client.embeddings.create(model="vectors", input="안녕", dimensions=8)
        other = await client.embeddings.create(model="others", input="안녕")
        assert len(short.data[0].embedding) == 8
        assert other.model == "others"


async def test_langchain_embeds_documents_and_a_question() -> None:
    async with embedding() as (_, http, _client):
        chain = OpenAIEmbeddings(
            model="text-embedding-3-small", openai_api_base=f"{http.base_url}/v1", openai_api_key=SecretStr("x"),
            check_embedding_ctx_length=False, max_retries=0,
        )  # fmt: skip
        documents = await chain.aembed_documents(TEXTS)
        question = await chain.aembed_query(TEXTS[0])
        await chain.async_client._client.close()
        chain.client._client.close()
        assert documents[0] == documents[2] == question != documents[1]


REFUSED: Final[list[tuple[dict[str, Any], int, str]]] = [
    ({"input": []}, 400, "0 texts to embed: give 1 to 2048"),
    ({"input": ["안녕", ""]}, 400, "text 1 is empty"),
    ({"input": ""}, 400, "text 0 is empty"),
    ({"input": [1, 2, 3]}, 400, "check_embedding_ctx_length=False"),
    ({"input": [[1, 2, 3]]}, 400, "tokens are not taken"),
    ({"input": {"text": "안녕"}}, 400, "input"),
    ({}, 400, "input: Field required"),
    ({"input": "x", "encoding_format": "int8"}, 400, "'float' or 'base64'"),
    ({"input": "x", "dimensions": 0}, 400, "dimensions"),
    ({"input": "x\x00"}, 400, "NUL"),
    ({"input": "x" * 40_000}, 400, "vectors@bench context_too_long"),
    ({"input": "x", "model": "nobody"}, 404, "unknown model 'nobody'"),
    ({"input": "x", "model": "echo"}, 404, "echo takes no embeddings; models that do: vectors, others"),
    ({"input": "x", "constraints": {"max_cost_usd": 0}}, 402, "the budget allows none"),
]


async def test_what_cannot_be_is_refused_in_openais_shape() -> None:
    async with embedding() as (_, http, _client):
        for body, status, words in REFUSED:
            response = await http.post("/v1/embeddings", json=body)
            error = response.json()["error"]
            assert response.status_code == status, body
            assert error["type"] == ("insufficient_quota" if status == 402 else "invalid_request_error")
            assert words in error["message"], error
            assert error["llm"]["request_id"] == response.headers["x-llm-request-id"]
            assert response.headers["x-should-retry"] == "false"


async def test_a_chat_that_names_a_model_that_embeds_is_refused() -> None:
    async with embedding() as (_, _http, client):
        with pytest.raises(openai.NotFoundError, match="vectors takes no chats; models that do: echo, spare"):
            await client.chat.completions.create(model="vectors", messages=[{"role": "user", "content": "안녕"}])


async def test_a_model_that_fails_is_tried_again_and_no_other_answers() -> None:
    async with embedding() as (_, http, _client):
        told = {"input": "안녕", "metadata": {"loopback": {"fail": "server_error"}}}
        response = await http.post("/v1/embeddings", json=told)
        assert response.status_code == 502
        assert response.headers["x-llm-attempts"] == "2"
        assert re.findall(r"(\w+)@", response.json()["error"]["message"]) == ["vectors", "vectors"]


async def test_vectors_too_large_for_the_bus_are_a_refusal_that_says_what_to_do_and_what_it_cost() -> None:
    async with embedding() as (_, http, _client):
        response = await http.post("/v1/embeddings", json={"input": ["글"] * 600, "dimensions": 3072})
        assert response.status_code == 413
        error = response.json()["error"]
        assert "600 vectors take 9830400 bytes" in error["message"]
        assert "send fewer texts in one request, or ask for fewer `dimensions`" in error["message"]
        assert (error["llm"]["type"], error["llm"]["spent"]) == ("payload_too_large", "yes")
        assert response.headers["x-llm-wasted-usd"] == "0.0006"


async def test_it_lies_on_the_bus_is_answered_once_and_is_decided_again_as_before() -> None:
    """The same key is the same answer; what was decided comes out the same from its record."""
    async with embedding() as (whole, http, _client):
        key = {"idempotency-key": "docs-1"}
        first = await http.post("/v1/embeddings", json={"input": TEXTS}, headers=key)
        again = await http.post("/v1/embeddings", json={"input": TEXTS}, headers=key)
        assert first.json() == again.json()
        reply = await whole.client.ask(LlmRequest(embed=tuple(TEXTS)), capability="embed", request_id="bus-1")
        assert [list(unpacked(vector)) for vector in reply.embeddings or ()] == [
            each["embedding"] for each in first.json()["data"]
        ]
        assert (reply.message, reply.finish_reason, reply.cost_usd) == (None, None, Decimal("0.000011"))
        compared = 0
        async for letter in whole.bus.read(EVENTS, str(Event("tester", "bus-1", "decided"))):
            decided = Decided.decode(letter.data)
            asked = await whole.bus.get(REQUESTS, decided.request_seq)
            assert asked is not None
            assert whole.book is not None
            subject = parse(asked.subject)
            assert isinstance(subject, Request)
            assert not differences(decided, subject, asked.data, asked.headers, asked.seq, whole.book.in_force.policy)
            compared += 1
        assert compared == 1


async def test_where_loopback_stands_in_the_answer_says_that_no_model_made_it() -> None:
    nowhere = yaml.safe_load(policy())
    nowhere["providers"]["ollama"] = {"dialect": "ollama", "url": "http://127.0.0.1:9"}
    nowhere["models"]["vectors"]["provider"] = "ollama"
    async with inside(policy=yaml.safe_dump(nowhere), nodes=False) as whole:
        await whole.start_node(stand_in=True)
        async with edge_on(whole.url) as http:
            body = (await http.post("/v1/embeddings", json={"input": "안녕"})).json()
            assert body["notice"] == "no model answered: loopback stood in for text-embedding-3-small"
            assert len(body["data"][0]["embedding"]) == 256


async def test_on_two_machines_with_ollama_it_is_loaded_like_any_other_and_moves_to_no_other_model() -> None:
    """Both hold the same model; when one fails the other answers, when both do nobody else does."""
    model = FakeModel(gb=1, dimensions=32)
    async with (
        FakeOllama({"qwen3-embedding:0.6b": model, "chat": FakeModel(gb=1)}) as mini,
        FakeOllama({"qwen3-embedding:0.6b": model}) as book,
        inside(policy=two_machines(mini.url, book.url), nodes=False) as whole,
    ):
        for name in ("mini", "book"):
            await whole.stack.enter_async_context(node(whole.url, name))
        asked = LlmRequest(embed=tuple(TEXTS))
        reply = await whole.client.ask(asked, capability="embed")
        assert [len(unpacked(vector)) for vector in reply.embeddings or ()] == [32] * 3
        used, spare = (mini, book) if reply.node == "mini" else (book, mini)
        assert (used.loads, spare.loads) == (["qwen3-embedding:0.6b"], [])
        assert [body["options"] for body in used.embeds] == [{"num_ctx": 2048}]
        for ollama in (mini, book):
            ollama.faults.extend(["error_first"] * 4)
        failed = await _failed(whole, asked)
        assert {(each.model, each.node) for each in failed.attempts} == {("vectors", "mini"), ("vectors", "book")}
        assert not mini.chats


async def _failed(whole: Inside, asked: LlmRequest) -> Reply:
    with pytest.raises(RequestFailedError) as caught:
        await whole.client.ask(asked, capability="embed")
    assert caught.value.reply is not None
    return caught.value.reply


def two_machines(mini: str, book: str) -> str:
    free = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}
    every = {"provider": "ollama", "quality": 0.5, "tokens_per_s": 100, "memory_gb": 1, "price": free}
    return json.dumps(
        {
            "version": 1,
            "nodes": {
                name: {"memory_gb": 8, "urls": {"ollama": url}} for name, url in (("mini", mini), ("book", book))
            },
            "providers": {"ollama": {"dialect": "ollama"}},
            "models": {
                "vectors": {
                    **every, "nodes": ["mini", "book"], "backend": "qwen3-embedding:0.6b", "embeds": True,
                    "context_tokens": 2048,
                },
                "chat": {**every, "nodes": ["mini"], "backend": "chat", "context_tokens": 8000},
            },
            "capabilities": {"chat": {"models": ["chat"]}, "embed": {"models": ["vectors"]}},
            "default": {"models": ["chat"]},
            "fallbacks": {"default": ["chat"], "server_error": ["chat"]},
        }
    )  # fmt: skip
