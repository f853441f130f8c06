"""The OpenAI provider against a server that does all that real ones do, well and badly, over real TCP."""

import json
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import SecretStr, TypeAdapter
from pydantic_core import from_json, to_json

from adapters.providers import Backend, Setup, build
from adapters.providers.openai import OpenAI, request_body
from router.errors import AttemptError
from router.ports import Progress
from schemas.failure import FailureKind
from schemas.work import Usage
from tests.support.openai_speech import (
    ASKED,
    CANARY,
    DONE,
    FINISH,
    PIECES,
    RECORDED,
    TEXT,
    TOOLS,
    USAGE,
    ask,
    call,
    error,
    event,
    fail,
    refusing,
    streaming,
)
from tests.support.scripted_upstream import Exchange, Script, ScriptedUpstream
from tests.support.sdk_types import check


async def test_the_parts_of_an_answer() -> None:
    pieces: list[str] = []
    answer = await ask(streaming(RECORDED), progress=Progress(pieces.append))
    assert answer.text == "".join(pieces) == TEXT
    assert answer.finish_reason == "stop"
    assert answer.usage == Usage(tokens_in=20, tokens_out=10, cached_tokens_in=8, reasoning_tokens_out=4)


async def test_several_tool_calls_in_pieces() -> None:
    answer = await ask(streaming(TOOLS))
    assert answer.finish_reason == "tool_calls"
    assert [(found["id"], found["function"]["name"]) for found in answer.tool_calls] == [
        ("a", "weather"),
        ("b", "clock"),
    ]
    assert [json.loads(found["function"]["arguments"]) for found in answer.tool_calls] == [
        {"도시": "서울"},
        {"zone": 9},
    ]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_reasoning_is_kept_apart(name: str) -> None:
    thoughts: list[str] = []
    answer = await ask(streaming(event({name: "생각"}) + RECORDED), progress=Progress(on_reasoning=thoughts.append))
    assert (answer.text, answer.reasoning, thoughts) == (TEXT, "생각", ["생각"])


@pytest.mark.parametrize(
    ("said", "told"),
    [({"stop_reason": "끝\n"}, "끝\n"), ({"matched_stop": "END"}, "END"), ({"stop_reason": None}, None),
     ({"matched_stop": 151645}, None), ({"stop_reason": "<|im_end|>"}, None), ({"stop_reason": ["END"]}, None)],
    ids=["vllm", "sglang", "nothing", "a token", "the server's own", "nonsense"],
)  # fmt: skip
async def test_a_stop_sequence_is_told_if_the_server_tells_and_the_request_has_it(
    said: dict[str, Any], told: str | None
) -> None:
    choice = {"index": 0, "delta": {}, "finish_reason": "stop", **said}
    last = b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"
    asked = call(stop=("끝\n", "END"))
    streamed = await ask(streaming(PIECES + last + event(usage=USAGE) + DONE), asked)
    message = {"role": "assistant", "content": TEXT}
    whole = await ask(refusing(200, {"choices": [{"message": message, "finish_reason": "stop", **said}]}), asked)
    for answer in (streamed, whole):
        assert (answer.text, answer.finish_reason, answer.stop_sequence) == (TEXT, "stop", told)


async def test_a_finish_reason_without_done_is_an_end_and_usage_may_be_missing() -> None:
    answer = await ask(streaming(PIECES + FINISH))
    assert (answer.text, answer.usage) == (TEXT, None)


async def test_an_answer_that_did_not_stream_is_accepted() -> None:
    message = {"role": "assistant", "content": TEXT}
    body = json.dumps({"choices": [{"message": message, "finish_reason": "length"}], "usage": USAGE}, indent=1).encode()
    answer = await ask(refusing(200, body))
    assert (answer.text, answer.finish_reason) == (TEXT, "length")
    assert answer.usage is not None


@pytest.mark.parametrize(
    "lie", [None, "many", {"prompt_tokens": -1, "completion_tokens": 2}, {"prompt_tokens": 10**15}, {},
            {"prompt_tokens": 1.5, "completion_tokens": 2}, {**USAGE, "prompt_tokens_details": {"cached_tokens": -3}},
            {**USAGE, "total_tokens": 10**15}],
)  # fmt: skip
async def test_usage_that_cannot_be_true_is_unknown(lie: Any) -> None:
    answer = await ask(streaming(PIECES + FINISH + event(usage=lie) + DONE))
    assert (answer.text, answer.usage) == (TEXT, None)


async def test_tokens_that_only_the_total_counts_are_output() -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 100}
    answer = await ask(streaming(PIECES + FINISH + event(usage=usage) + DONE))
    assert answer.usage is not None
    assert answer.usage.tokens_out == 80


async def test_no_key_is_told_with_its_remedy_and_nobody_is_called() -> None:
    setup = Setup("http://127.0.0.1:9/v1", {"gpt-x": Backend()}, key_names=("OPENAI_API_KEY",))
    provider = build("openai", setup)
    found = await provider.probe()
    assert "set OPENAI_API_KEY" in str(found["gpt-x"])
    with pytest.raises(AttemptError) as caught:
        await provider.chat(call(), Progress())
    assert caught.value.failure.kind is FailureKind.AUTH
    await provider.aclose()


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (refusing(200, {"data": [{"id": "gpt-x"}, {"id": "models/gemini"}]}), [None, None, "does not offer other"]),
        (refusing(404, b"404 page not found"), [None, None, None]),
        (refusing(401, error(f"bad key {CANARY}")), ["check X_KEY"] * 3),
    ],
)
async def test_probe(script: Script, found: list[str | None]) -> None:
    async with ScriptedUpstream(script) as upstream:
        provider = OpenAI(upstream.url, ["gpt-x", "gemini", "other"], keys=[SecretStr(CANARY)], key_names=["X_KEY"])
        told = list((await provider.probe()).values())
        await provider.aclose()
    assert [why if why is None else expected for why, expected in zip(told, found, strict=True)] == found
    assert all((expected or "") in (why or "") for why, expected in zip(told, found, strict=True))
    assert CANARY not in repr(told)


@pytest.mark.parametrize("script", [refusing(500, b"{}"), refusing(200, b"[]"), refusing(200, b'{"data":[5]}')])
async def test_probe_of_something_else_fails(script: Script) -> None:
    async with ScriptedUpstream(script) as upstream:
        provider = OpenAI(upstream.url, ["gpt-x"])
        with pytest.raises(AttemptError):
            await provider.probe()
        await provider.aclose()


@pytest.mark.parametrize("recorded", [RECORDED, TOOLS], ids=["text", "tools"])
async def test_the_recordings_are_what_the_vendors_own_client_reads(recorded: bytes) -> None:
    for line in recorded.splitlines():
        if line.startswith(b"data: {"):
            ChatCompletionChunk.model_validate_json(line[6:])
    ours = await ask(streaming(recorded))
    async with (
        ScriptedUpstream(streaming(recorded, 5)) as upstream,
        AsyncOpenAI(base_url=upstream.url, api_key=CANARY, max_retries=0) as client,
        client.chat.completions.stream(model="m", messages=[{"role": "user", "content": ASKED}]) as stream,
    ):
        theirs = (await stream.get_final_completion()).choices[0]
    assert (theirs.message.content or "") == ours.text
    assert theirs.finish_reason == ours.finish_reason
    assert [(each.id, each.function.name, each.function.arguments) for each in theirs.message.tool_calls or ()] == [
        (each["id"], each["function"]["name"], each["function"]["arguments"]) for each in ours.tool_calls
    ]


def test_the_request_is_one_by_the_vendors_own_types() -> None:
    parts = [
        {"type": "text", "text": ASKED},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "문서.pdf"}},
    ]
    tool_call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"도시":"서울"}'}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "네", "tool_calls": [tool_call]},
        {"role": "tool", "content": "맑음", "tool_call_id": "a"},
    ]
    thinking = {"thinking_blocks": [{"type": "thinking", "thinking": "생각", "signature": "x"}]}
    schema = {"name": "city", "schema": {"type": "object"}, "strict": True}
    asked = call(
        messages=[turns[0], {**turns[1], **thinking}, turns[2]], max_tokens=5, temperature=0.5, top_p=0.5, seed=7,
        stop=("끝",), reasoning_effort="none", tools=[{"type": "function", "function": {"name": "weather"}}],
        tool_choice="required", response_format={"type": "json_schema", "json_schema": schema},
    )  # fmt: skip
    body = from_json(to_json(request_body("gpt-x", asked.chat, native=True)))
    check(TypeAdapter(CompletionCreateParamsStreaming), body)
    assert body["messages"] == turns
    assert body["reasoning_effort"] == "none"


def test_the_request() -> None:
    turns = [{"role": "developer", "content": "짧게"}, {"role": "user", "content": ASKED}]
    chat = call(messages=turns, max_tokens=5, stop=("끝",), tool_choice="auto").chat
    elsewhere, native = (request_body("m", chat, native=native) for native in (False, True))
    assert (elsewhere["max_tokens"], native["max_completion_tokens"]) == (5, 5)
    assert [body["messages"][0]["role"] for body in (elsewhere, native)] == ["system", "developer"]
    assert "max_tokens" not in native
    assert "tool_choice" not in native  # without tools it would be refused
    assert native["stream_options"] == {"include_usage": True}


async def test_what_a_model_thought_goes_back_but_where_it_is_refused() -> None:
    thought = {"role": "assistant", "content": "맑음", "reasoning_content": "흐린가?"}
    turns = [{"role": "user", "content": ASKED}, thought, {"role": "user", "content": "정말?"}]
    asked: list[Any] = []

    async def script(exchange: Exchange) -> None:
        asked.append(exchange.json()["messages"][1])
        refusal = refusing(400, error("messages.1.assistant.reasoning_content: it is unsupported"))
        await (refusal if "reasoning_content" in asked[-1] else streaming(RECORDED))(exchange)

    answer = await ask(script, call(messages=turns))
    assert answer.text == TEXT
    assert asked == [thought, {"role": "assistant", "content": "맑음"}]
    native = request_body("m", call(messages=turns).chat, native=True)
    assert native["messages"][1] == asked[1]
    assert (await fail(refusing(400, error("reasoning_content?")), call())).kind is FailureKind.BAD_REQUEST


async def test_a_model_that_takes_no_effort_answers_in_its_own_way() -> None:
    asked: list[Any] = []

    async def script(exchange: Exchange) -> None:
        asked.append(exchange.json().get("reasoning_effort"))
        wrong = error("Unsupported parameter: 'reasoning_effort' is not supported with this model.")
        await (refusing(400, wrong) if asked[-1] else streaming(RECORDED))(exchange)

    answer = await ask(script, call(reasoning_effort="none"))
    assert (answer.text, asked) == (TEXT, ["none", None])
    failure = await fail(refusing(400, error("Unsupported parameter: 'reasoning_effort'")), call())
    assert failure.kind is FailureKind.BAD_REQUEST, "without one there is nothing to leave out"
