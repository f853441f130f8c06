"""The Anthropic provider against a server that does all that the real one does, well and badly, over real TCP."""

import asyncio
import json
from typing import Any

import pytest
from anthropic import AsyncAnthropic
from anthropic.types import RawMessageStreamEvent
from pydantic import SecretStr, TypeAdapter

from adapters.providers import Backend, Setup, build
from adapters.providers.anthropic import VERSION, Anthropic
from router.errors import AttemptError
from router.ports import Progress, ToolCallPiece
from schemas.failure import FailureKind
from schemas.work import Usage
from tests.support.anthropic_speech import (
    BEGIN,
    END,
    FINISH,
    MODEL,
    PIECES,
    PING,
    RECORDED,
    REFUSED,
    SEALED,
    SIGNATURE,
    SPOKEN,
    THOUGHT,
    TOOLS,
    amid,
    ask,
    block,
    call,
    closed,
    error,
    event,
    fail,
    start,
    stop,
)
from tests.support.openai_speech import CANARY, TEXT, refusing, streaming
from tests.support.scripted_upstream import Ending, Exchange, Script, ScriptedUpstream

USAGE = Usage(
    tokens_in=127, tokens_out=15, cached_tokens_in=100, cache_write_tokens_in=7, reasoning_tokens_out=6
)  # fmt: skip
BLOCKS = (
    {"type": "thinking", "thinking": THOUGHT, "signature": SIGNATURE},
    {"type": "redacted_thinking", "data": SEALED},
)


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 64, 10_000])
@pytest.mark.parametrize("form", ["lf", "crlf", "comments", "no blank line", "no event names", "several data lines"])
async def test_any_form_and_cut_of_the_stream_gives_the_same_answer(piece: int, form: str) -> None:
    body = {
        "lf": RECORDED,
        "crlf": RECORDED.replace(b"\n", b"\r\n"),
        "comments": b": hello\n\n" + RECORDED.replace(b"\n\n", b"\n\n: still here\n\n"),
        "no blank line": RECORDED.replace(b"\n\n", b"\n"),
        "no event names": b"\n".join(line for line in RECORDED.split(b"\n") if not line.startswith(b"event")),
        "several data lines": RECORDED.replace(b', "index"', b',\ndata: "index"'),
    }[form]
    texts: list[str] = []
    thoughts: list[str] = []
    records: list[dict[str, Any]] = []
    progress = Progress(texts.append, thoughts.append, on_thinking_block=records.append)
    answer = await ask(streaming(body, piece), progress=progress)
    assert answer.text == "".join(texts) == TEXT
    assert answer.reasoning == "".join(thoughts) == THOUGHT
    assert answer.thinking_blocks == tuple(records) == BLOCKS
    assert answer.finish_reason == "stop"
    assert answer.usage == USAGE


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 64, 10_000])
async def test_several_tool_calls_in_mixed_pieces(piece: int) -> None:
    told: list[ToolCallPiece] = []
    answer = await ask(streaming(TOOLS, piece), progress=Progress(on_tool_call=told.append))
    assert (answer.text, answer.finish_reason) == (TEXT, "tool_calls")
    calls = [(each["id"], each["function"]["name"], json.loads(each["function"]["arguments"]))
             for each in answer.tool_calls]  # fmt: skip
    expected = [("toolu_a", "weather", {"도시": "서울"}), ("toolu_b", "clock", {"zone": 9}), ("toolu_c", "now", {})]
    assert calls == expected
    assert [(piece.index, piece.id, piece.name) for piece in told if piece.id] == [
        (at, call_id, name) for at, (call_id, name, _) in enumerate(expected)
    ]
    assert "".join(piece.arguments for piece in told if piece.index == 1) == '{"zone": 9}'


@pytest.mark.parametrize("recorded", [RECORDED, TOOLS, REFUSED], ids=["thinking", "tools", "refusal"])
async def test_the_recordings_are_what_the_vendors_own_client_reads(recorded: bytes) -> None:
    adapter: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    for line in recorded.splitlines():
        if line.startswith(b"data: ") and b'"ping"' not in line:
            adapter.validate_json(line[6:])
    ours = await ask(streaming(recorded))
    async with (
        ScriptedUpstream(streaming(recorded, 5)) as upstream,
        AsyncAnthropic(base_url=upstream.url, api_key=CANARY, max_retries=0) as client,
        client.messages.stream(
            model=MODEL, max_tokens=99, messages=[{"role": "user", "content": "안녕"}]
        ) as stream,
    ):  # fmt: skip
        theirs = await stream.get_final_message()
    assert upstream.exchanges[0].path.partition("?")[0] == "/v1/messages"
    assert "".join(part.text for part in theirs.content if part.type == "text") == (
        ours.text if recorded != REFUSED else ""
    )
    assert [(part.id, part.name, part.input) for part in theirs.content if part.type == "tool_use"] == [
        (each["id"], each["function"]["name"], json.loads(each["function"]["arguments"])) for each in ours.tool_calls
    ]
    assert [part.model_dump() for part in theirs.content if part.type in {"thinking", "redacted_thinking"}] == [
        *ours.thinking_blocks
    ]
    assert ours.usage is not None
    assert theirs.usage.output_tokens == ours.usage.tokens_out


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("recorded", [RECORDED, TOOLS], ids=["thinking", "tools"])
async def test_cut_at_every_byte_it_is_never_whole(recorded: bytes, how: Ending, *, chunked: bool) -> None:
    whole_from = len(recorded.rstrip())
    async with ScriptedUpstream() as upstream:
        provider = Anthropic(upstream.url)
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


@pytest.mark.parametrize(
    ("said", "reason"),
    [("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
     ("model_context_window_exceeded", "length"), ("pause_turn", "length"), ("refusal", "content_filter"),
     ("something_new", "stop")],
)  # fmt: skip
async def test_why_it_ended(said: str, reason: str) -> None:
    answer = await ask(streaming(PIECES + closed(0) + stop(said) + END))
    assert (answer.text, answer.finish_reason) == (TEXT, reason)


@pytest.mark.parametrize(
    ("reason", "named", "told"),
    [("stop_sequence", "끝\n", "끝\n"), ("stop_sequence", None, None), ("end_turn", None, None),
     ("end_turn", "", None)],
)  # fmt: skip
async def test_the_sequence_that_ended_it_is_told_if_the_server_tells(
    reason: str, named: str | None, told: str | None
) -> None:
    streamed = await ask(streaming(PIECES + closed(0) + stop(reason, stop_sequence=named) + END))
    text = {"type": "text", "text": TEXT}
    body = {"type": "message", "role": "assistant", "content": [text], "stop_reason": reason, "stop_sequence": named}
    whole = await ask(refusing(200, body))
    for answer in (streamed, whole):
        assert (answer.text, answer.finish_reason, answer.stop_sequence) == (TEXT, "stop", told)


async def test_a_refusal_is_an_answer_that_says_why() -> None:
    answer = await ask(streaming(REFUSED))
    assert (answer.text, answer.finish_reason) == ("도와드릴 수 없습니다", "content_filter")


async def test_thinking_that_nobody_signed_is_not_kept_to_be_sent_back() -> None:
    recorded = RECORDED.replace(SIGNATURE.encode(), b"")
    answer = await ask(streaming(recorded))
    assert answer.reasoning == THOUGHT
    assert answer.thinking_blocks == BLOCKS[1:]


async def test_blocks_of_tools_that_the_server_runs_are_no_calls() -> None:
    searched = block(5, "server_tool_use", id="srvtoolu_1", name="web_search", input={})
    query = event("content_block_delta", index=5, delta={"type": "input_json_delta", "partial_json": '{"q":1}'})
    answer = await ask(streaming(PIECES + searched + query + closed(5) + FINISH + END))
    assert (answer.text, answer.tool_calls) == (TEXT, ())


async def test_an_answer_that_did_not_stream_is_accepted() -> None:
    tool = {"type": "tool_use", "id": "toolu_a", "name": "weather", "input": {"도시": "서울"}}
    usage = {"input_tokens": 20, "output_tokens": 5}
    body = {
        "type": "message", "role": "assistant", "content": [*BLOCKS, {"type": "text", "text": TEXT}, tool],
        "stop_reason": "tool_use", "usage": usage,
    }  # fmt: skip
    answer = await ask(refusing(200, body))
    assert (answer.text, answer.reasoning, answer.thinking_blocks) == (TEXT, THOUGHT, BLOCKS)
    assert json.loads(answer.tool_calls[0]["function"]["arguments"]) == {"도시": "서울"}
    assert (answer.finish_reason, answer.usage) == ("tool_calls", Usage(tokens_in=20, tokens_out=5))


@pytest.mark.parametrize(
    ("first", "last"),
    [({"input_tokens": -1}, None), ({"input_tokens": 10**12}, None), ({"input_tokens": "20"}, None),
     ({"cache_read_input_tokens": -100}, None), ({"input_tokens": 1.5}, None), ({}, {}), ({}, "many"), ({}, [1]),
     ({}, {"output_tokens": -1}), ({}, {"output_tokens": True}), ({}, {"output_tokens": 10**15}),
     ({"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}, {"output_tokens": 0})],
)  # fmt: skip
async def test_usage_that_cannot_be_true_is_unknown(first: dict[str, Any], last: Any) -> None:
    body = SPOKEN.replace(start(), start(**first)).replace(stop("end_turn"), stop("end_turn", usage=last))
    answer = await ask(streaming(body))
    assert (answer.text, answer.usage) == (TEXT, None)


async def test_without_a_cache_all_counts_are_plain() -> None:
    first = start(cache_read_input_tokens=None, cache_creation_input_tokens=None)
    answer = await ask(streaming(SPOKEN.replace(start(), first)))
    assert answer.usage == Usage(tokens_in=20, tokens_out=15, reasoning_tokens_out=6)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (amid("overloaded_error"), FailureKind.SERVER_ERROR),
        (start() + PING + amid("overloaded_error"), FailureKind.SERVER_ERROR),
        (start() + block(0, "thinking", thinking="", signature="") + amid("api_error"), FailureKind.SERVER_ERROR),
        (PIECES + amid("overloaded_error"), FailureKind.INTERRUPTED),
        (start() + amid("rate_limit_error", "slow down"), FailureKind.RATE_LIMITED),
        (start() + amid("authentication_error", "who are you"), FailureKind.AUTH),
        (start() + amid("billing_error", "pay first"), FailureKind.AUTH),
        (start() + amid("invalid_request_error", "what?"), FailureKind.BAD_REQUEST),
        (start() + amid("invalid_request_error", "prompt is too long: 9 > 5"), FailureKind.CONTEXT_TOO_LONG),
        (PIECES + amid("api_error", "Output blocked by content filtering policy"), FailureKind.CONTENT_POLICY),
        (PIECES + END, FailureKind.MALFORMED),
        (PIECES + FINISH, FailureKind.INTERRUPTED),
        (b"data: {nonsense}\n\n", FailureKind.MALFORMED),
        (b'data: {"type": 5}\n\n', FailureKind.MALFORMED),
        (b"<!doctype html><title>Sign in</title>\n", FailureKind.MALFORMED),
        (b'{"detail": "fine"}', FailureKind.MALFORMED),
        (b'{"type": "message", "content": []}', FailureKind.INTERRUPTED),
        (json.dumps(error("overloaded_error", "Overloaded")).encode(), FailureKind.SERVER_ERROR),
    ],
    ids=range(18),
)
async def test_what_goes_wrong_within_a_200(body: bytes, kind: FailureKind) -> None:
    failure = await fail(streaming(body))
    assert failure.kind is kind


@pytest.mark.parametrize(
    ("status", "kind_said", "message", "kind"),
    [
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum",
         FailureKind.CONTEXT_TOO_LONG),
        (400, "invalid_request_error", "input length and `max_tokens` exceed context limit: 199000 + 16000 > 200000",
         FailureKind.CONTEXT_TOO_LONG),
        (413, "request_too_large", "Request exceeds the maximum size", FailureKind.CONTEXT_TOO_LONG),
        (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.", FailureKind.AUTH),
        (400, "invalid_request_error", "You have reached your specified API usage limits.", FailureKind.AUTH),
        (400, "invalid_request_error", "This organization has been disabled.", FailureKind.AUTH),
        (402, "billing_error", "pay first", FailureKind.AUTH),
        (401, "authentication_error", "invalid x-api-key", FailureKind.AUTH),
        (403, "permission_error", "not yours", FailureKind.AUTH),
        (404, "not_found_error", "model: claude-x", FailureKind.BAD_REQUEST),
        (400, "invalid_request_error", "Output blocked by content filtering policy", FailureKind.CONTENT_POLICY),
        (429, "rate_limit_error", "slow down", FailureKind.RATE_LIMITED),
        (500, "api_error", "oops", FailureKind.SERVER_ERROR),
        (504, "timeout_error", "late", FailureKind.SERVER_ERROR),
        (529, "overloaded_error", "Overloaded", FailureKind.SERVER_ERROR),
    ],
)  # fmt: skip
async def test_refusals(status: int, kind_said: str, message: str, kind: FailureKind) -> None:
    failure = await fail(refusing(status, error(kind_said, message)))
    assert (failure.kind, failure.status) == (kind, status)
    assert message in failure.message


async def test_a_monthly_limit_of_the_tier_is_not_waited_for() -> None:
    body = error("rate_limit_error", "This request would exceed your organization's monthly limit")
    body["error"]["details"] = {"error_code": "enforced_spend_limit_reached"}
    assert (await fail(refusing(429, body))).kind is FailureKind.AUTH


@pytest.mark.parametrize(
    ("sent", "kind"),
    [(None, FailureKind.SILENCE), (b"", FailureKind.SILENCE), (BEGIN + PING * 9, FailureKind.SILENCE),
     (PIECES, FailureKind.INTERRUPTED)],
    ids=["no head", "head only", "pings only", "midway"],
)  # fmt: skip
async def test_silence_is_told_from_a_stall_and_hangs_up(sent: bytes | None, kind: FailureKind) -> None:
    async def script(exchange: Exchange) -> None:
        if sent is not None:
            await exchange.head()
            await exchange.send(sent)
        await exchange.client_gone()

    async with ScriptedUpstream(script) as upstream:
        provider = Anthropic(upstream.url)
        with pytest.raises(AttemptError) as caught:
            await provider.chat(call(first_ms=5000 if sent == PIECES else 100, idle_ms=100), Progress())
        await asyncio.wait_for(upstream.exchanges[0].gone.wait(), 1)
        await provider.aclose()
    assert caught.value.failure.kind is kind


async def test_cancelling_midway_closes_the_connection() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(PIECES)
        await exchange.client_gone()

    first = asyncio.Event()
    async with ScriptedUpstream(script) as upstream, asyncio.TaskGroup() as group:
        provider = Anthropic(upstream.url)
        task = group.create_task(provider.chat(call(), Progress(lambda _piece: first.set())))
        await first.wait()
        task.cancel()
        await asyncio.wait_for(upstream.exchanges[0].gone.wait(), 1)
        await provider.aclose()
    assert task.cancelled()


async def test_the_key_goes_in_its_own_header_and_connections_are_kept() -> None:
    async with ScriptedUpstream(streaming(SPOKEN)) as upstream:
        provider = Anthropic(f"{upstream.url}/v1", keys=[SecretStr(CANARY)])
        for _ in range(3):
            assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    asked = upstream.exchanges[0]
    assert (asked.path, asked.headers["x-api-key"]) == ("/v1/messages", CANARY)
    assert asked.headers["anthropic-version"] == VERSION
    assert "authorization" not in asked.headers
    assert upstream.connections == 1


@pytest.mark.parametrize("leak", [refusing(401, error("authentication_error", f"bad key {CANARY}")),
                                  streaming(start() + amid("api_error", f"bad key {CANARY}"))])  # fmt: skip
async def test_a_key_is_never_told(leak: Script) -> None:
    failure = await fail(leak)
    assert CANARY not in failure.encode().decode()


async def test_no_key_is_told_with_its_remedy_and_nobody_is_called() -> None:
    setup = Setup("http://127.0.0.1:9/v1", {MODEL: Backend()}, key_names=("ANTHROPIC_API_KEY", "CLAUDE_API_KEY"))
    provider = build("anthropic", setup)
    assert "set ANTHROPIC_API_KEY or CLAUDE_API_KEY" in str((await provider.probe())[MODEL])
    with pytest.raises(AttemptError) as caught:
        await provider.chat(call(), Progress())
    assert caught.value.failure.kind is FailureKind.AUTH
    await provider.aclose()


async def test_probe_knows_a_model_by_its_name_with_and_without_the_date() -> None:
    listed = {"data": [{"type": "model", "id": "claude-haiku-4-5-20251001"}, {"type": "model", "id": MODEL}]}
    names = [MODEL, "claude-haiku-4-5", "claude-haiku-4-5-20251001", "claude-haiku-4"]
    async with ScriptedUpstream(refusing(200, listed)) as upstream:
        provider = Anthropic(f"{upstream.url}/v1", names, keys=[SecretStr(CANARY)])
        found = await provider.probe()
        await provider.aclose()
    assert upstream.exchanges[0].path.startswith("/v1/models?")
    assert [found[name] for name in names[:3]] == [None] * 3
    assert "does not offer claude-haiku-4" in str(found["claude-haiku-4"])
