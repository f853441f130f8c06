"""Claude Code, headless, on the bus: two turns with a tool call, whatever dialect the model behind it speaks."""

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.node import node
from ops.policy_file import load_policy
from ops.policy_in_force import SHIPPED, shipped_policy
from schemas import LlmRequest
from subjects.streams import REQUESTS
from tests.support.aimock import Aimock
from tests.support.claude_code import PACKAGE, ClaudeCode, claude_code
from tests.support.dialects import CANARY, WHERE, every
from tests.support.edge import edge_on
from tests.support.fake_ollama import FakeModel, FakeOllama
from tests.support.inside import Inside, inside

pytestmark = [pytest.mark.node, pytest.mark.claude_code]

PROMPT = "셸로 항구의 이름을 알아봐 줘"
COMMAND = {"command": "echo 부산항", "description": "항구의 이름을 말한다"}
ANSWER = "항구의 이름은 부산항입니다."


@pytest.fixture
def claude(pytestconfig: pytest.Config) -> Any:
    assert pytestconfig.cache is not None
    with tempfile.TemporaryDirectory(prefix="llmbus-claude-") as home:
        yield claude_code(pytestconfig.cache, Path(home))


def policy(dialect: str, url: str, backend: str, context_tokens: int = 200_000) -> str:
    return yaml.safe_dump(
        {
            "version": 1,
            "nodes": {"bench": {}},
            "providers": {"upstream": {"dialect": dialect, "url": url, "keys": ["CANARY_KEY"]}},
            "models": {
                "coder": {
                    "nodes": ["bench"], "provider": "upstream", "backend": backend, "quality": 0.5,
                    "tokens_per_s": 100, "slots": 4, "context_tokens": context_tokens,
                }
            },
            "capabilities": {"chat": {"models": ["coder"]}},
            "default": {"models": ["coder"]},
            "guardrails": load_policy(shipped_policy(), SHIPPED).model_dump()["guardrails"],
        }
    )  # fmt: skip


@asynccontextmanager
async def edge_over(policy: str) -> AsyncIterator[tuple[str, Inside]]:
    """The address of an edge whose one model, `coder`, stands behind that policy's provider; and the bus."""
    async with inside(nodes=False, policy=policy) as whole:
        await whole.stack.enter_async_context(node(whole.url, "bench", environ={"CANARY_KEY": CANARY}))
        async with edge_on(whole.url) as http:
            yield str(http.base_url), whole


async def asked(whole: Inside) -> list[LlmRequest]:
    """All requests that came onto the bus, in order."""
    return [LlmRequest.decode(letter.data) async for letter in whole.bus.read(REQUESTS)]


def test_the_lock_names_no_registry() -> None:
    lock = json.loads((PACKAGE / "package-lock.json").read_text(encoding="utf-8"))
    packages = [package for path, package in lock["packages"].items() if path]
    assert all("resolved" not in package and package["integrity"].startswith("sha512-") for package in packages)


@every("openai", "anthropic", "gemini")
async def test_it_calls_a_tool_and_answers_from_its_result(aimock: Aimock, claude: ClaudeCode, dialect: str) -> None:
    called: dict[str, Any] = {"toolCalls": [{"name": "Bash", "arguments": COMMAND}]}
    if dialect == "gemini":
        called["finishReason"] = "stop"  # as Gemini ends its calls
    await aimock.teach(
        {"match": {"toolName": "Bash", "hasToolResult": False}, "response": called},
        {"match": {"toolResultContains": "부산항"}, "response": {"content": ANSWER}},
    )
    path, backend = WHERE[dialect]
    async with edge_over(policy(dialect, aimock.url + path, backend)) as (url, _):
        told = await claude.ask(url, PROMPT, model="coder")
    assert (told.result["subtype"], told.result["is_error"], told.result["num_turns"]) == ("success", False, 2)
    assert told.result["result"] == ANSWER
    assert [(block["name"], block["input"]) for block in told.blocks("tool_use")] == [("Bash", COMMAND)]
    assert [block["content"] for block in told.blocks("tool_result")] == ["부산항"]


async def test_it_works_with_a_local_model(claude: ClaudeCode) -> None:
    model = FakeModel(tool_calls=(("Bash", COMMAND),))
    async with FakeOllama({"coder:32b": model}) as ollama:
        async with edge_over(policy("ollama", ollama.url, "coder:32b")) as (url, _):
            told = await claude.ask(url, PROMPT, model="coder")
        assert (told.result["subtype"], told.result["is_error"], told.result["num_turns"]) == ("success", False, 2)
        assert told.result["result"].split() == ["부산항"], "it repeats its last turn, the result"
        first, second = ollama.chats
        assert {tool["function"]["name"] for tool in first["tools"]} >= {"Bash", "Read", "Edit"}
        assert [turn["role"] for turn in second["messages"][-2:]] == ["assistant", "tool"]


async def test_a_session_goes_on_though_a_model_numbers_its_calls_anew(claude: ClaudeCode) -> None:
    model = FakeModel(tool_calls=(("Bash", COMMAND),))
    async with FakeOllama({"coder:32b": model}) as ollama:
        async with edge_over(policy("ollama", ollama.url, "coder:32b")) as (url, _):
            await claude.ask(url, PROMPT, model="coder")
            told = await claude.ask(url, "다시 한 번", "--continue", model="coder")
        assert (told.result["is_error"], told.result["num_turns"]) == (False, 2)
        assert len({block["id"] for block in told.blocks("tool_use")}) == 1
        assert [turn["role"] for turn in ollama.chats[-1]["messages"]].count("tool") == 2


async def test_a_stream_that_broke_off_is_asked_for_again_without_one(aimock: Aimock, claude: ClaudeCode) -> None:
    whole_answer = {"response": {"content": ANSWER}, "chunkSize": 2}
    await aimock.teach(
        {**whole_answer, "match": {"sequenceIndex": 0}, "latency": 30, "truncateAfterChunks": 6}, whole_answer
    )
    path, backend = WHERE["openai"]
    async with edge_over(policy("openai", aimock.url + path, backend)) as (url, whole):
        told = await claude.ask(url, "항구를 묘사해 줘", model="coder")
        requests = await asked(whole)
    assert (told.result["is_error"], told.result["result"]) == (False, ANSWER)
    assert [request.stream for request in requests] == [True, False]


async def test_it_asks_for_less_where_a_context_is_small(aimock: Aimock, claude: ClaudeCode) -> None:
    await aimock.teach({"response": {"content": ANSWER}})
    path, backend = WHERE["openai"]
    async with edge_over(policy("openai", aimock.url + path, backend, context_tokens=30_000)) as (url, whole):
        told = await claude.ask(url, "항구를 묘사해 줘", model="coder")
        first, second = [request.preferences.max_tokens or 0 for request in await asked(whole)]
    assert (told.result["is_error"], told.result["result"]) == (False, ANSWER)
    assert second < 30_000 <= first


async def test_it_knows_a_prompt_that_is_too_long_in_any_dialect(aimock: Aimock, claude: ClaudeCode) -> None:
    said = {"message": "This model's maximum context length is 8192 tokens.", "code": "context_length_exceeded"}
    await aimock.teach({"response": {"error": said, "status": 400}})
    path, backend = WHERE["openai"]
    async with edge_over(policy("openai", aimock.url + path, backend)) as (url, _):
        told = await claude.ask(url, "항구를 묘사해 줘", model="coder")
    assert told.result["is_error"]
    assert told.result["result"].startswith("Prompt is too long")
