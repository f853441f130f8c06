"""The Cohere provider over real TCP, its bytes held against Cohere's own client and types."""

import json
from typing import Any, get_args

import cohere
import pytest
from cohere.v2.types import V2ChatStreamResponse
from pydantic import SecretStr

from adapters.providers.cohere import Cohere, request_body
from router.ports import Progress, ToolCallPiece
from schemas.failure import FailureKind
from schemas.outcome import Answer
from schemas.work import Usage
from tests.support.cohere_speech import (
    ASKED,
    CANARY,
    FINISH,
    MODEL,
    PIECES,
    PLAN,
    RECORDED,
    START,
    TEXT,
    THINKING,
    TOOLS,
    USAGE,
    WEATHER,
    ask,
    call,
    end,
    event,
    fail,
    streaming,
    tool,
)
from tests.support.scripted_upstream import Exchange, ScriptedUpstream

COUNTED = Usage(tokens_in=11, tokens_out=10, cached_tokens_in=8)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 64])
async def test_any_cut_gives_the_same_answer(piece: int) -> None:
    pieces: list[str] = []
    answer = await ask(streaming(RECORDED, piece), progress=Progress(pieces.append))
    assert pieces == ["안녕하세요 ", "🙂 hello"]
    assert answer == Answer(text=TEXT, usage=COUNTED)


@pytest.mark.parametrize("piece", [1, 64, 10_000])
async def test_several_tool_calls_in_pieces_and_the_plan_is_reasoning_to_be_sent_back(piece: int) -> None:
    told: list[ToolCallPiece] = []
    answer = await ask(streaming(TOOLS, piece), progress=Progress(on_tool_call=told.append))
    assert (answer.finish_reason, answer.text, answer.reasoning) == ("tool_calls", "", PLAN)
    assert [(found["id"], found["function"]["name"]) for found in answer.tool_calls] == [
        ("a", "weather"),
        ("b", "clock"),
    ]
    assert [json.loads(found["function"]["arguments"]) for found in answer.tool_calls] == [
        {"도시": "서울"},
        {"zone": 9},
    ]
    assert [(piece.index, piece.id) for piece in told] == [(0, "a"), (0, None), (0, None), (1, "b"), *[(1, None)] * 2]
    turns = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "tool_calls": answer.tool_calls, "thinking_blocks": answer.thinking_blocks},
    ]
    sent_back = request_body(MODEL, call(messages=turns).chat)["messages"][1]
    assert sent_back == {"role": "assistant", "tool_calls": list(answer.tool_calls), "tool_plan": PLAN}


async def test_thinking_is_kept_apart() -> None:
    thoughts: list[str] = []
    answer = await ask(streaming(THINKING), progress=Progress(on_reasoning=thoughts.append))
    assert (answer.text, answer.reasoning, thoughts) == (TEXT, "음, 생각", ["음, ", "생각"])


@pytest.mark.parametrize(
    ("said", "reason"),
    [("COMPLETE", "stop"), ("STOP_SEQUENCE", "stop"), ("MAX_TOKENS", "length"), ("TOOL_CALL", "tool_calls")],
)
async def test_finish_reasons(said: str, reason: str) -> None:
    assert (await ask(streaming(PIECES + end(said)))).finish_reason == reason


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (PIECES + end("ERROR", error="model overloaded"), FailureKind.INTERRUPTED),
        (PIECES + end("ERROR"), FailureKind.INTERRUPTED),
        (PIECES + end("TIMEOUT", usage=USAGE), FailureKind.INTERRUPTED),
        (PIECES + end("COMPLETE", error="half of it is missing"), FailureKind.INTERRUPTED),
        (PIECES + end("SOMETHING_NEW"), FailureKind.INTERRUPTED),
        (PIECES + end(None), FailureKind.INTERRUPTED),
        (PIECES + FINISH, FailureKind.INTERRUPTED),
        (PIECES + b'data: {"message": "internal server error"}\n\n', FailureKind.INTERRUPTED),
        (START + end("ERROR", error="model overloaded"), FailureKind.SERVER_ERROR),
        (b'data: {"id": "x", "message": "too many tokens: 5000"}\n\n', FailureKind.CONTEXT_TOO_LONG),
        (START + end("ERROR", error="blocked by our content policy"), FailureKind.CONTENT_POLICY),
        (b'data: {"delta": {}}\n\n', FailureKind.MALFORMED),
        (event("content-delta", {"content": ["x"]}, index=0), FailureKind.MALFORMED),
        (event("tool-call-delta", {"tool_calls": {"function": {"arguments": "{"}}}), FailureKind.MALFORMED),
        (b'{"id": "x", "finish_reason": "COMPLETE", "message": {"content": []}}', FailureKind.MALFORMED),
    ],
    ids=range(15),
)
async def test_what_goes_wrong_within_a_200(body: bytes, kind: FailureKind) -> None:
    assert (await fail(streaming(body))).kind is kind


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "invalid request: message must be at least 1 token long", FailureKind.BAD_REQUEST),
        (400, "too many tokens: total number of tokens cannot exceed 4081", FailureKind.CONTEXT_TOO_LONG),
        (401, "invalid api token", FailureKind.AUTH),
        (402, "add or update a payment method to continue", FailureKind.AUTH),
        (404, "model 'x' not found", FailureKind.BAD_REQUEST),
        (422, "invalid type", FailureKind.BAD_REQUEST),
        (429, "You are past the per minute request limit", FailureKind.RATE_LIMITED),
        (500, "internal server error", FailureKind.SERVER_ERROR),
        (503, "service unavailable", FailureKind.SERVER_ERROR),
    ],
)
async def test_refusals_before_the_stream(status: int, message: str, kind: FailureKind) -> None:
    body = json.dumps({"id": "c1", "message": message}).encode()
    failure = await fail(lambda exchange: exchange.reply(status, body))
    assert (failure.kind, failure.status) == (kind, status)
    assert message in failure.message


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        (USAGE, COUNTED),
        ({"billed_units": {"input_tokens": 11.0, "output_tokens": 10.0}}, Usage(tokens_in=11, tokens_out=10)),
        ({"tokens": {"input_tokens": 78, "output_tokens": 12}}, Usage(tokens_in=78, tokens_out=12)),
        ({"billed_units": {"search_units": 1}, "tokens": {"input_tokens": 7, "output_tokens": 1}},
         Usage(tokens_in=7, tokens_out=1)),
        ({"billed_units": {"input_tokens": 0, "output_tokens": 0}}, None),
        ({**USAGE, "cached_tokens": -1}, None),
        ({}, None),
        (None, None),
        ("many", None),
    ],
)  # fmt: skip
async def test_usage_is_what_is_billed(said: Any, usage: Usage | None) -> None:
    answer = await ask(streaming(PIECES + FINISH + end(usage=said)))
    assert (answer.text, answer.usage) == (TEXT, usage)


@pytest.mark.parametrize("path", ["", "/", "/v2", "/v2/"])
async def test_where_it_calls_and_with_which_key(path: str) -> None:
    listed = b'{"models": [{"name": "command-a-03-2025", "endpoints": ["chat"]}], "next_page_token": null}'
    async with ScriptedUpstream(streaming(RECORDED)) as upstream:
        provider = Cohere(upstream.url + path, [MODEL, "명령"], keys=[SecretStr(CANARY)], key_names=["COHERE_API_KEY"])
        await provider.chat(call(), Progress())
        upstream.script = lambda exchange: exchange.reply(200, listed)
        found = await provider.probe()
        await provider.aclose()
        asked = [(exchange.method, exchange.path) for exchange in upstream.exchanges]
        assert {exchange.headers["authorization"] for exchange in upstream.exchanges} == {f"Bearer {CANARY}"}
    assert asked == [("POST", "/v2/chat"), ("GET", "/v1/models?page_size=1000")]
    assert found[MODEL] is None
    assert "does not offer 명령" in str(found["명령"])


@pytest.mark.parametrize("recorded", [RECORDED, THINKING, TOOLS], ids=["text", "thinking", "tools"])
def test_the_recorded_bytes_are_of_coheres_own_types(recorded: bytes) -> None:
    kinds = {kind.model_fields["type"].default: kind for kind in get_args(get_args(V2ChatStreamResponse)[0])}
    for line in recorded.splitlines():
        if line.startswith(b"data:"):
            body = json.loads(line[5:])
            kinds[body["type"]].model_validate(body)


async def test_coheres_own_client_reads_the_same_bytes_and_sends_the_same_request() -> None:
    wish = call(tools=[WEATHER], max_tokens=5, temperature=0.5, reasoning_effort="low")
    async with ScriptedUpstream(streaming(TOOLS)) as upstream:
        provider = Cohere(upstream.url, keys=[SecretStr(CANARY)])
        answer = await provider.chat(wish, Progress())
        await provider.aclose()
        async with cohere.AsyncClientV2(api_key=CANARY, base_url=upstream.url) as client:
            body = request_body(MODEL, wish.chat)
            body.pop("stream")
            events = [event async for event in client.chat_stream(**body)]
        ours, theirs = upstream.exchanges
    assert (ours.method, ours.path, ours.json()) == (theirs.method, theirs.path, theirs.json())
    assert ours.headers["authorization"] == theirs.headers["authorization"]
    assert "".join(map(_arguments, events)) == "".join(found["function"]["arguments"] for found in answer.tool_calls)
    assert (events[-1].type, events[-1].delta) == ("message-end", cohere.ChatMessageEndEventDelta.model_validate(
        {"finish_reason": "TOOL_CALL", "usage": USAGE}
    ))  # fmt: skip


def _arguments(event: Any) -> str:
    started = event.type in {"tool-call-start", "tool-call-delta"}
    return event.delta.message.tool_calls.function.arguments if started else ""


async def test_several_calls_mixed_are_told_apart() -> None:
    mixed = START + tool(0, "", id="a", name="f") + tool(1, "{", id="b", name="g") + tool(0, "{}") + tool(1, "}")

    async def script(exchange: Exchange) -> None:
        await exchange.stream(mixed + end("TOOL_CALL"))

    answer = await ask(script)
    assert [found["function"] for found in answer.tool_calls] == [
        {"name": "f", "arguments": "{}"},
        {"name": "g", "arguments": "{}"},
    ]
