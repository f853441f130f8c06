"""The Ollama provider against a stand-in of Ollama, and against a server that cuts and garbles, over real TCP."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from ollama import AsyncClient, ChatResponse
from ollama._types import ChatRequest
from pydantic_core import to_json

from adapters.providers import Backend
from adapters.providers.ollama import Ollama, request_body
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.failure import FailureKind
from schemas.request import Chat
from schemas.work import Usage
from tests.support.fake_ollama import FakeModel, FakeOllama
from tests.support.ollama_speech import RECORDED, TEXT
from tests.support.scripted_upstream import ScriptedUpstream

MODEL = "qwen3-coder:32b"
KOREAN = "안녕하세요, 이벤트 기반 라우터를 한 문장으로 설명해 주세요 🙂"


def call(text: str = KOREAN, *, first_ms: int = 5000, idle_ms: int = 5000, **chat: Any) -> Call:
    turns = chat.pop("messages", [{"role": "user", "content": text}])
    return Call(MODEL, Chat.model_validate({"messages": turns, **chat}), first_token_ms=first_ms, idle_ms=idle_ms)


async def failing(url: str, asked: Call) -> AttemptError:
    provider = Ollama(url, {MODEL: Backend()})
    try:
        with pytest.raises(AttemptError) as caught:
            await provider.chat(asked, Progress())
    finally:
        await provider.aclose()
    return caught.value


async def test_answers_in_pieces_with_counts() -> None:
    pieces: list[str] = []
    thoughts: list[str] = []
    async with FakeOllama({MODEL: FakeModel(thinking=("음, ", "생각"))}) as ollama:
        provider = Ollama(ollama.url, {MODEL: Backend(num_ctx=8192, resident=True)})
        answer = await provider.chat(call(), Progress(pieces.append, thoughts.append))
        await provider.aclose()
        assert ollama.chats[0]["options"] == {"num_ctx": 8192}
        assert ollama.chats[0]["keep_alive"] == -1
    assert answer.text == "".join(pieces) == KOREAN
    assert answer.reasoning == "".join(thoughts) == "음, 생각"
    assert answer.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.tokens_out == len(pieces) + len(thoughts) == 11
    assert answer.load_ms is not None


async def test_a_model_that_cannot_think_answers_without() -> None:
    async with FakeOllama({MODEL: FakeModel()}) as ollama:
        provider = Ollama(ollama.url, {MODEL: Backend()})
        answer = await provider.chat(call(reasoning_effort="high"), Progress())
        await provider.aclose()
        assert "think" not in ollama.chats[-1]
    assert answer.text == KOREAN


async def test_num_predict_ends_in_length_and_equal_options_load_once() -> None:
    async with FakeOllama({MODEL: FakeModel()}) as ollama:
        provider = Ollama(ollama.url, {MODEL: Backend(num_ctx=2048)})
        answers = [await provider.chat(call("one two three", max_tokens=n), Progress()) for n in (2, 3)]
        await provider.aclose()
        assert ollama.chats[0]["keep_alive"] == 2 * 3600
        assert ollama.loads == [MODEL]
    assert [(answer.text, answer.finish_reason) for answer in answers] == [
        ("one two ", "length"),
        ("one two three", "stop"),
    ]


async def test_tool_calls_come_back_as_openai_has_them() -> None:
    fake = FakeModel(answer=(), tool_calls=(("weather", {"도시": "서울"}), ("clock", {})))
    async with FakeOllama({MODEL: fake}) as ollama:
        provider = Ollama(ollama.url, {})
        answer = await provider.chat(call(tools=[{"type": "function", "function": {"name": "weather"}}]), Progress())
        await provider.aclose()
    assert answer.finish_reason == "tool_calls"
    assert [found["function"]["name"] for found in answer.tool_calls] == ["weather", "clock"]
    assert json.loads(answer.tool_calls[0]["function"]["arguments"]) == {"도시": "서울"}


def test_the_request_in_ollamas_words() -> None:
    tool_call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"서울"}'}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    chat = call(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "이게 뭐죠?"}, picture]},
            {"role": "assistant", "tool_calls": [tool_call]},
            {"role": "tool", "content": "맑음", "tool_call_id": "c1"},
        ],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        stop=("끝",), temperature=0, seed=7, top_p=0.5,
    ).chat  # fmt: skip
    body = request_body(MODEL, Backend(num_ctx=4096), chat)
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "이게 뭐죠?", "images": ["AAAA"]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": {"city": "서울"}}}],
        },
        {"role": "tool", "content": "맑음", "tool_name": "weather", "tool_call_id": "c1"},
    ]
    assert body["format"] == {"type": "object"}
    assert body["options"] == {"num_ctx": 4096, "temperature": 0, "top_p": 0.5, "stop": ("끝",), "seed": 7}
    assert body["stream"] is True


@pytest.mark.parametrize(("effort", "think"), [("none", False), ("low", "low"), ("medium", "medium"), ("high", "high")])
def test_how_long_a_model_may_think(effort: str, think: Any) -> None:
    assert request_body(MODEL, Backend(), call(reasoning_effort=effort).chat)["think"] == think
    assert "think" not in request_body(MODEL, Backend(), call().chat)
    assert "think" not in request_body(MODEL, Backend(), call(reasoning_effort="auto").chat)


async def test_the_recording_and_the_request_are_what_the_vendors_own_client_reads_and_writes() -> None:
    for line in RECORDED.splitlines():
        ChatResponse.model_validate_json(line)
    tool_call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"도시":"서울"}'}}
    thinking = {"thinking_blocks": [{"type": "thinking", "thinking": "생각", "signature": "x"}]}
    turns = [
        {"role": "user", "content": KOREAN},
        {"role": "assistant", "content": "네", "tool_calls": [tool_call], **thinking},
        {"role": "tool", "content": "맑음", "tool_call_id": "a"},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    asked = call(messages=turns, tools=tools, response_format=schema, reasoning_effort="high", max_tokens=9, seed=7)
    body = json.loads(to_json(request_body(MODEL, Backend(num_ctx=4096, resident=True), asked.chat)))
    ChatRequest.model_validate(body)
    assert b"thinking_blocks" not in to_json(body)
    async with ScriptedUpstream(lambda exchange: exchange.stream(RECORDED, piece=5)) as upstream:
        client = AsyncClient(host=upstream.url)
        parts = [part async for part in await client.chat(MODEL, [{"role": "user", "content": KOREAN}], stream=True)]
        await client._client.aclose()
    assert "".join(part.message.content or "" for part in parts) == "안녕 🙂 hi"
    assert (parts[-1].prompt_eval_count, parts[-1].eval_count) == (26, 2)


@pytest.mark.parametrize(
    ("chat", "kind"),
    [
        ({"tool_choice": "required"}, FailureKind.UNSUPPORTED),
        ({"response_format": {"type": "grammar"}}, FailureKind.UNSUPPORTED),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}]}
                ]
            },
            FailureKind.UNSUPPORTED,
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}
                ]
            },
            FailureKind.BAD_REQUEST,
        ),
    ],
)
def test_what_ollama_cannot_do_is_known_before_the_call(chat: dict[str, Any], kind: FailureKind) -> None:
    with pytest.raises(AttemptError) as caught:
        request_body(MODEL, Backend(), call(**chat).chat)
    assert caught.value.failure.kind is kind


async def test_a_model_that_is_not_on_disk() -> None:
    async with FakeOllama({"gemma3:12b": FakeModel(), "llama3:latest": FakeModel()}) as ollama:
        error = await failing(ollama.url, call())
        provider = Ollama(ollama.url, dict.fromkeys(("gemma3:12b", "llama3", MODEL), Backend()))
        found = await provider.probe()
        await provider.aclose()
    assert error.failure.kind is FailureKind.BAD_REQUEST
    assert error.failure.status == 404
    assert f"ollama pull {MODEL}" in error.failure.message
    assert found["gemma3:12b"] is found["llama3"] is None
    assert f"ollama pull {MODEL}" in str(found[MODEL])


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("error_first", FailureKind.SERVER_ERROR),
        ("error_midway", FailureKind.INTERRUPTED),
        ("no_done", FailureKind.INTERRUPTED),
        ("cut", FailureKind.INTERRUPTED),
        ("stall_first", FailureKind.SILENCE),
        ("stall_midway", FailureKind.INTERRUPTED),
    ],
)
async def test_faults_of_ollama(fault: Any, kind: FailureKind) -> None:
    async with FakeOllama({MODEL: FakeModel()}) as ollama:
        ollama.faults.append(fault)
        error = await failing(ollama.url, call(first_ms=100 if fault == "stall_first" else 5000, idle_ms=100))
        if fault.startswith("stall"):
            await asyncio.wait_for(ollama.cancelled.wait(), 5)
    assert error.failure.kind is kind


async def test_a_prompt_beyond_the_context_is_refused_and_not_shortened() -> None:
    async with FakeOllama({MODEL: FakeModel()}) as ollama:
        error = await failing(ollama.url, call("긴 글 " * 8000))
    assert error.failure.kind is FailureKind.CONTEXT_TOO_LONG


async def test_a_full_queue_is_a_server_error() -> None:
    async with FakeOllama({MODEL: FakeModel()}, max_queue=0) as ollama:
        error = await failing(ollama.url, call())
    assert error.failure.kind is FailureKind.SERVER_ERROR
    assert "server busy" in error.failure.message


async def test_the_stand_in_evicts_by_keep_alive_and_reloads_for_another_context() -> None:
    sizes = {"big": FakeModel(gb=3), "small": FakeModel(gb=1), MODEL: FakeModel(gb=2)}
    async with FakeOllama(sizes, memory_gb=4) as ollama:
        backends = {"big": Backend(resident=True), "small": Backend(), MODEL: Backend()}
        provider = Ollama(ollama.url, backends)
        for name in ("big", "small", "big", MODEL, "small"):
            await provider.chat(replace(call("hi"), backend=name), Progress())
        other = Ollama(ollama.url, {"small": Backend(num_ctx=999)})
        await other.chat(replace(call("hi"), backend="small"), Progress())
        await other.aclose()
        await provider.aclose()
    # The resident one goes last, and only because what is left without it is still too much.
    assert ollama.evictions == ["small", "big"]
    assert ollama.loads == ["big", "small", MODEL, "small", "small"]


async def test_the_stand_in_serves_as_many_at_a_time_as_it_has_places_and_refuses_loads_only() -> None:
    async with FakeOllama({MODEL: FakeModel()}, parallel=1) as ollama:
        provider = Ollama(ollama.url, {})
        await provider.chat(call("load it"), Progress())
        ollama.max_queue = 0
        ollama.faults.append("stall_midway")
        began = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(provider.chat(call(), Progress(lambda _piece: began.set())))
            await began.wait()
            second = group.create_task(provider.chat(call("둘째"), Progress()))
            first.cancel()  # frees the only place
        assert second.result().text == "둘째"
        await provider.aclose()


async def test_the_parts_of_an_answer() -> None:
    async with ScriptedUpstream(lambda exchange: exchange.stream(RECORDED)) as upstream:
        provider = Ollama(upstream.url, {})
        answer = await provider.chat(call(), Progress())
        await provider.aclose()
    assert answer.text == TEXT
    assert answer.load_ms == pytest.approx(2.154458)
    assert answer.usage == Usage(tokens_in=26, tokens_out=2)


async def test_a_line_of_another_shape_is_malformed() -> None:
    async with ScriptedUpstream(lambda exchange: exchange.stream(b'{"message":[]}\n')) as upstream:
        error = await failing(upstream.url, call())
    assert error.failure.kind is FailureKind.MALFORMED


async def test_an_answer_that_did_not_stream_is_accepted() -> None:
    body = '{"message": {"content": "네"}, "done": true}'.encode()
    async with ScriptedUpstream(lambda exchange: exchange.reply(200, body)) as upstream:
        provider = Ollama(upstream.url, {})
        answer = await provider.chat(call(), Progress())
        await provider.aclose()
    assert answer.text == "네"
