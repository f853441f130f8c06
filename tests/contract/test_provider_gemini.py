"""The Gemini provider against a server that does all that Google's does, well and badly, over real TCP."""

import asyncio
import json
from typing import Any

import pytest
from google import genai
from google.genai import types
from pydantic import SecretStr
from pydantic.alias_generators import to_camel

from adapters.providers import Backend, Setup, build
from adapters.providers.gemini import Gemini
from router.errors import AttemptError
from router.ports import Progress, ToolCallPiece
from schemas.failure import FailureKind
from schemas.work import Usage
from tests.support.gemini_speech import (
    ASKED,
    CANARY,
    END,
    FINISH,
    MODEL,
    PIECES,
    RECORDED,
    SIGNATURE,
    TEXT,
    TOOLS,
    USAGE,
    ask,
    call,
    calls,
    error,
    event,
    fail,
    said,
    text,
)
from tests.support.openai_speech import refusing, streaming
from tests.support.scripted_upstream import Ending, Exchange, Script, ScriptedUpstream

SCHEMA = {"type": "object", "properties": {"도시": {"type": "string"}}, "required": ["도시"]}


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 64, 10_000])
@pytest.mark.parametrize("form", ["crlf", "lf", "comments", "no blank line", "several data lines", "a JSON list"])
async def test_any_form_and_cut_of_the_stream_gives_the_same_answer(piece: int, form: str) -> None:
    lines = RECORDED.replace(END, b"\n\n")
    body = {
        "crlf": RECORDED,
        "lf": lines,
        "comments": b": hello\n\n" + lines.replace(b"\n\n", b"\n\n: still here\n\n"),
        "no blank line": lines.replace(b"\n\n", b"\n"),
        "several data lines": lines.replace(b', "modelVersion"', b',\ndata: "modelVersion"'),
        "a JSON list": b"[" + lines.replace(b"\n\ndata: ", b"\n,\r\n").removeprefix(b"data: ") + b"]\n",
    }[form]
    pieces: list[str] = []
    answer = await ask(streaming(body, piece), progress=Progress(pieces.append))
    assert answer.text == "".join(pieces) == TEXT
    assert answer.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage == Usage(tokens_in=23, tokens_out=10, cached_tokens_in=8, reasoning_tokens_out=4)


@pytest.mark.parametrize("piece", [1, 10_000])
async def test_several_tool_calls_and_thoughts_kept_apart_with_the_signature_of_the_first(piece: int) -> None:
    thoughts: list[str] = []
    told: list[ToolCallPiece] = []
    answer = await ask(
        streaming(TOOLS, piece), progress=Progress(on_reasoning=thoughts.append, on_tool_call=told.append)
    )
    assert (answer.text, answer.reasoning, thoughts) == ("", "두 가지를 물어봐야 한다.", ["두 가지를 물어봐야 한다."])
    assert answer.finish_reason == "tool_calls"
    first, second = answer.tool_calls
    assert [(one["id"], one["function"]["name"]) for one in (first, second)] == [("a", "weather"), ("b", "clock")]
    assert json.loads(first["function"]["arguments"]) == {"도시": "서울"}
    assert json.loads(second["function"]["arguments"]) == {"zone": 9}
    assert first["extra_content"] == {"google": {"thought_signature": SIGNATURE}}
    assert "extra_content" not in second
    assert [(one.index, one.id, one.name) for one in told] == [(0, "a", "weather"), (1, "b", "clock")]


async def test_calls_without_an_id_get_one_of_their_own() -> None:
    body = said(calls("clock", {})) + said(calls("clock", {}), finish="STOP")
    answers = [await ask(streaming(body)) for _ in range(2)]
    ids = [one["id"] for answer in answers for one in answer.tool_calls]
    assert len(set(ids)) == 4
    assert all(ids)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("recorded", [RECORDED, TOOLS], ids=["text", "tools"])
async def test_cut_at_every_byte_it_is_never_whole(recorded: bytes, how: Ending, *, chunked: bool) -> None:
    # The last event is read at its line's end; where a clean end is all the transport can tell, its last brace will do.
    whole_from = len(recorded) - (2 if chunked else len(END))
    async with ScriptedUpstream() as upstream:
        provider = Gemini(upstream.url)
        for cut in range(whole_from):

            async def script(exchange: Exchange, cut: int = cut) -> None:
                await exchange.head(200, {"Transfer-Encoding": "chunked"} if chunked else {})
                await (exchange.chunk if chunked and cut else exchange.send)(recorded[:cut])
                await exchange.end(how)

            upstream.script = script
            with pytest.raises(AttemptError) as caught:
                await provider.chat(call(), Progress())
            allowed = {FailureKind.INTERRUPTED} | ({FailureKind.CONNECTION} if how == "rst" else set())
            assert caught.value.failure.kind in allowed, (cut, caught.value)
        await provider.aclose()


async def test_a_finish_reason_with_every_piece_ends_nothing_before_the_body_does() -> None:
    early = said(finish="STOP", usageMetadata=USAGE)
    every = said(text("안녕하세요 🙂 "), finish="STOP", usageMetadata=USAGE) + FINISH
    assert [(await ask(streaming(body))).text for body in (early + RECORDED, every)] == [TEXT, TEXT]

    async def cut(exchange: Exchange) -> None:
        await exchange.head(200, {"Transfer-Encoding": "chunked"})
        await exchange.chunk(every[: -len(FINISH)])
        await exchange.end()

    assert (await fail(cut)).kind is FailureKind.INTERRUPTED
    assert (await fail(streaming(early + PIECES))).kind is FailureKind.INTERRUPTED
    assert (await fail(streaming(every + RECORDED[:60]))).kind is FailureKind.INTERRUPTED


async def test_of_several_candidates_the_first_is_the_answer() -> None:
    two = [{"index": 0, "content": {"parts": [text(TEXT)]}, "finishReason": "STOP"},
           {"index": 1, "content": {"parts": [text("또 다른 답")]}, "finishReason": "SAFETY"}]  # fmt: skip
    answer = await ask(streaming(event(candidates=two, usageMetadata=USAGE)))
    assert (answer.text, answer.finish_reason) == (TEXT, "stop")


async def test_usage_may_come_after_the_finish_reason() -> None:
    answer = await ask(streaming(PIECES + said(text("hello"), finish="STOP") + event(usageMetadata=USAGE)))
    assert answer.text == TEXT
    assert answer.usage is not None
    assert answer.usage.tokens_out == 10


async def test_a_server_that_stays_on_the_line_after_the_end_does_not_hold_the_answer() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(RECORDED)
        await exchange.client_gone()

    answer = await asyncio.wait_for(ask(script, call(first_ms=60_000, idle_ms=60_000)), 5)
    assert answer.text == TEXT


@pytest.mark.parametrize(
    "lie", [None, "many", {}, {"trafficType": "ON_DEMAND"}, {**USAGE, "promptTokenCount": -1},
            {**USAGE, "promptTokenCount": 20, "toolUsePromptTokenCount": -3}, {**USAGE, "candidatesTokenCount": 10**15},
            {**USAGE, "thoughtsTokenCount": 1.5}, {"candidatesTokenCount": 6}, {"promptTokenCount": 20}],
)  # fmt: skip
async def test_usage_that_cannot_be_true_is_unknown(lie: Any) -> None:
    answer = await ask(streaming(said(text(TEXT), finish="STOP", usageMetadata=lie)))
    assert (answer.text, answer.usage) == (TEXT, None)


FILTERS = ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY")


@pytest.mark.parametrize(
    ("finish", "reason"), [("MAX_TOKENS", "length"), *((finish, "content_filter") for finish in FILTERS)]
)
async def test_finish_reasons(finish: str, reason: str) -> None:
    answer = await ask(streaming(PIECES + said(finish=finish, usageMetadata={"promptTokenCount": 20})))
    assert (answer.text, answer.finish_reason) == ("안녕하세요 🙂 ", reason)


@pytest.mark.parametrize(
    ("backend", "path"),
    [
        (f"models/{MODEL}", f"/models/{MODEL}"),
        ("../files/x?key=1#", "/models/..%2Ffiles%2Fx%3Fkey%3D1%23"),
        ("제미니", "/models/%EC%A0%9C%EB%AF%B8%EB%8B%88"),
    ],
)
async def test_a_models_name_stays_within_its_place_in_the_path(backend: str, path: str) -> None:
    async with ScriptedUpstream(streaming(RECORDED)) as upstream:
        provider = Gemini(upstream.url)
        await provider.chat(call(backend=backend), Progress())
        await provider.aclose()
    assert upstream.exchanges[0].path == f"{path}:streamGenerateContent?alt=sse"


async def test_whole_answers_leave_the_connection_usable() -> None:
    async with ScriptedUpstream(streaming(RECORDED)) as upstream:
        provider = Gemini(upstream.url)
        for _ in range(3):
            assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    assert upstream.connections == 1


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (refusing(200, {"models": [{"name": f"models/{MODEL}"}]}), [None, None, "does not offer other"]),
        (refusing(400, error(400, "API key not valid.", "INVALID_ARGUMENT")), ["check X_KEY"] * 3),
    ],
)
async def test_probe(script: Script, found: list[str | None]) -> None:
    async with ScriptedUpstream(script) as upstream:
        names = {name: Backend() for name in (MODEL, f"models/{MODEL}", "other")}
        setup = Setup(f"{upstream.url}/v1beta", names, keys=(SecretStr(CANARY),), key_names=("X_KEY",))
        provider = build("gemini", setup)
        told = await provider.probe()
        await provider.aclose()
    assert list(told) == list(names)
    assert [why if why is None else expected for why, expected in zip(told.values(), found, strict=True)] == found
    assert all((expected or "") in (why or "") for why, expected in zip(told.values(), found, strict=True))
    assert upstream.exchanges[0].path == "/v1beta/models?pageSize=1000"
    assert upstream.exchanges[0].headers["x-goog-api-key"] == CANARY


@pytest.mark.parametrize("recorded", [RECORDED, TOOLS, TOOLS + event(usageMetadata=USAGE)])
async def test_what_the_fixtures_say_is_what_googles_own_types_allow(recorded: bytes) -> None:
    for line in recorded.split(END):
        if line:
            types.GenerateContentResponse.model_validate_json(line.removeprefix(b"data: "))


def camel(value: Any) -> Any:
    """The client writes some names in snake case; in Google's JSON both mean the same."""
    if isinstance(value, list):
        return [camel(each) for each in value]
    return {to_camel(name): camel(each) for name, each in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("recorded", [RECORDED, TOOLS], ids=["text", "tools"])
async def test_googles_own_client_asks_the_same_and_reads_the_same(recorded: bytes) -> None:
    async with ScriptedUpstream(streaming(recorded, 7)) as upstream:
        provider = Gemini(f"{upstream.url}/v1beta", keys=[SecretStr(CANARY)])
        tool = {"type": "function", "function": {"name": "weather", "description": "날씨", "parameters": SCHEMA}}
        turns = [{"role": "system", "content": "짧게"}, {"role": "user", "content": ASKED}]
        wishes: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 9, "stop": ["끝"], "seed": 7}
        wishes["reasoning_effort"] = "low"
        asked = call(messages=turns, tools=[tool], tool_choice="required", **wishes)
        answer = await provider.chat(asked, Progress())
        await provider.aclose()
        options = types.HttpOptions(base_url=upstream.url, api_version="v1beta")
        wish = types.GenerateContentConfig(
            temperature=0.5, top_p=0.9, max_output_tokens=9, stop_sequences=["끝"], seed=7,
            thinking_config=types.ThinkingConfig(thinking_budget=1024, include_thoughts=True),
            system_instruction=types.Content(parts=[types.Part(text="짧게")]),
            tools=[types.Tool(function_declarations=[types.FunctionDeclaration(
                name="weather", description="날씨", parameters_json_schema=SCHEMA)])],
            tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(
                mode=types.FunctionCallingConfigMode.ANY)),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        )  # fmt: skip
        async with genai.Client(api_key=CANARY, http_options=options).aio as client:
            stream = await client.models.generate_content_stream(model=MODEL, contents=ASKED, config=wish)
            chunks = [chunk async for chunk in stream]
    ours, theirs = upstream.exchanges
    assert (ours.method, ours.path, ours.json()) == (theirs.method, theirs.path, camel(theirs.json()))
    assert ours.headers["x-goog-api-key"] == theirs.headers["x-goog-api-key"] == CANARY
    parts = [
        part for chunk in chunks for one in chunk.candidates or () for part in (one.content and one.content.parts) or ()
    ]
    assert answer.text == "".join(part.text for part in parts if part.text and not part.thought)
    assert answer.reasoning == ("".join(part.text for part in parts if part.text and part.thought) or None)
    called = [part.function_call for part in parts if part.function_call]
    assert [(one["id"], one["function"]["name"]) for one in answer.tool_calls] == [(one.id, one.name) for one in called]
    assert [json.loads(one["function"]["arguments"]) for one in answer.tool_calls] == [one.args for one in called]
    usage = chunks[-1].usage_metadata
    assert answer.usage is not None
    assert usage is not None
    assert answer.usage.cached_tokens_in == usage.cached_content_token_count
    assert answer.usage.tokens_in + answer.usage.tokens_out == usage.total_token_count
