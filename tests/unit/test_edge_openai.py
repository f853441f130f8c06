"""OpenAI's two doors without HTTP: what they read, and what they write of answers of every form."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from openai.types.responses.response_stream_event import ResponseStreamEvent
from pydantic import TypeAdapter

from adapters.edge.door import Asked, Door, Speech
from adapters.edge.errors import error_body
from adapters.edge.openai_chat import ChatCompletions
from adapters.edge.openai_input import turns
from adapters.edge.openai_responses import Responses
from adapters.edge.told import Told
from ops.policy_file import load_policy
from schemas import Chunk, Reply, ReplyMessage, Timings
from schemas.chunk import ToolCallChunk
from schemas.failure import Error, ErrorType
from schemas.outcome import FinishReason
from schemas.work import Usage
from tests.support.inside import POLICY
from tests.support.sdk_types import check

CHAT, RESPONSES = ChatCompletions(), Responses()
IN_FORCE = load_policy(POLICY, "loopback_policy.yaml")
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"도시":"서울"}'}}
MARKED = {**CALL, "extra_content": {"google": {"thought_signature": "c2ln"}}}
SIGNED = {"type": "thinking", "thinking": "흐린가?", "signature": "c2ln"}
CHUNKS: TypeAdapter[Any] = TypeAdapter(ChatCompletionChunk)
COMPLETION: TypeAdapter[Any] = TypeAdapter(ChatCompletion)
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RESPONSE: TypeAdapter[Any] = TypeAdapter(Response)
ANSWERS: dict[str, dict[str, Any]] = {
    "text": {"content": "맑음"},
    "nothing": {},
    "only thoughts": {"reasoning": "흐린가?"},
    "only a call": {"tool_calls": (CALL,)},
    "all": {"content": "맑음", "reasoning": "흐린가?", "tool_calls": (CALL, {**CALL, "id": "b"})},
    "signed": {"content": "맑음", "reasoning": "흐린가?", "thinking_blocks": (SIGNED,), "tool_calls": (MARKED,)},
    "sealed": {"content": "맑음", "thinking_blocks": ({"type": "redacted_thinking", "data": "eHg="},)},
}


def read(door: Door, **body: Any) -> Asked:
    return door.read(json.dumps(body).encode(), {}, IN_FORCE)


def asked(door: Door) -> Asked:
    if door is CHAT:
        return read(door, messages=[{"role": "user", "content": "날씨?"}], stream=True)
    return read(door, input="날씨?", stream=True, reasoning={"effort": "low"})


def reply(finish: FinishReason = "stop", **message: Any) -> Reply:
    return Reply(
        request_id="r1", client="c", request_hash="", status="ok", message=ReplyMessage(**{"content": "", **message}),
        finish_reason=finish, timings=Timings(total_ms=1), model="echo", usage=Usage(tokens_in=3, tokens_out=2),
    )  # fmt: skip


def chunk(**content: Any) -> Chunk:
    return Chunk(request_id="r1", attempt_id="1.1", n=0, model="echo", **content)


def said(data: bytes) -> list[Any]:
    lines = [line for line in data.decode().splitlines() if line.startswith("data: ")]
    return [each if (each := line.removeprefix("data: ")) == "[DONE]" else json.loads(each) for line in lines]


def streamed(speech: Speech, whole: Reply, *chunks: Chunk) -> list[Any]:
    """What goes out of an answer of which these pieces were heard."""
    told, out = Told(), b""
    for each in chunks:
        told.add(each)
        out += speech.piece(each)
    rest = told.rest(whole)
    assert rest is not None
    return said(out + b"".join(map(speech.piece, rest)) + speech.end(whole))


@pytest.mark.parametrize("name", ANSWERS)
def test_a_chat_says_the_same_whole_and_streamed(name: str) -> None:
    whole = reply(**ANSWERS[name])
    answer = CHAT.answer(asked(CHAT), whole)
    check(COMPLETION, answer)
    *chunks, done = streamed(CHAT.speech(asked(CHAT), "r1"), whole)
    assert done == "[DONE]"
    message: dict[str, Any] = {"content": "", "reasoning_content": ""}
    calls: dict[int, dict[str, Any]] = {}
    for each in chunks:
        check(CHUNKS, each)
        delta = each["choices"][0]["delta"]
        for field in ("content", "reasoning_content"):
            message[field] += delta.get(field, "")
        if blocks := delta.get("thinking_blocks"):
            message["thinking_blocks"] = blocks
        for call in delta.get("tool_calls", ()):
            known = calls.setdefault(call["index"], {"function": {"arguments": ""}})
            arguments = known["function"]["arguments"] + call["function"]["arguments"]
            function = {**known["function"], **call["function"], "arguments": arguments}
            known |= {**{key: call[key] for key in call.keys() - {"index"}}, "function": function}
    expected = answer["choices"][0]["message"]
    assert [calls[n] for n in sorted(calls)] == list(expected.get("tool_calls", ()))
    assert message["content"] == (expected["content"] or "")
    assert message["reasoning_content"] == expected.get("reasoning_content", "")
    assert (
        message.get("thinking_blocks", ()) == [*expected.get("thinking_blocks", ())] or "thinking_blocks" not in message
    )


@pytest.mark.parametrize("name", ANSWERS)
def test_a_response_says_the_same_whole_and_streamed(name: str) -> None:
    whole = reply(**ANSWERS[name])
    answer = RESPONSES.answer(asked(RESPONSES), whole)
    check(RESPONSE, answer)
    events = streamed(RESPONSES.speech(asked(RESPONSES), "r1"), whole)
    for n, event in enumerate(events):
        check(EVENTS, event)
        assert event["sequence_number"] == n
    assert events[-1]["type"] == "response.completed"
    assert {**events[-1]["response"], "created_at": 0, "completed_at": 0} == json.loads(
        json.dumps({**answer, "created_at": 0, "completed_at": 0})
    )
    added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
    done = [event["item"]["id"] for event in events if event["type"] == "response.output_item.done"]
    assert added == done == [item["id"] for item in answer["output"]]


def test_what_a_model_says_between_two_thoughts_is_an_item_of_its_own() -> None:
    pieces = [
        chunk(text="음, "),
        chunk(reasoning="흐린가?"),
        chunk(tool_call=ToolCallChunk(index=0, id="a", name="weather", arguments='{"도시":')),
        chunk(text="보자"),
    ]
    whole = reply(content="음, 보자", reasoning="흐린가?", tool_calls=(CALL,))
    output = streamed(RESPONSES.speech(asked(RESPONSES), "r1"), whole, *pieces)[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "reasoning", "function_call", "message"]
    assert len({item["id"] for item in output}) == 4
    assert [output[0]["content"][0]["text"], output[3]["content"][0]["text"]] == ["음, ", "보자"]
    assert output[2]["arguments"] == CALL["function"]["arguments"]  # type: ignore[index]


def test_a_record_of_thinking_goes_out_with_the_thought_that_it_is_of() -> None:
    pieces = [chunk(reasoning="흐린"), chunk(reasoning="가?"), chunk(thinking_block=SIGNED), chunk(text="맑음")]
    whole = reply(content="맑음", reasoning="흐린가?", thinking_blocks=(SIGNED,))
    events = streamed(RESPONSES.speech(asked(RESPONSES), "r1"), whole, *pieces)
    thought, message = (event["item"] for event in events if event["type"] == "response.output_item.done")
    assert turns(None, [thought, message])[0]["thinking_blocks"] == [SIGNED]
    assert events[-1]["response"]["output"] == RESPONSES.answer(asked(RESPONSES), whole)["output"]
    *_, last, _ = streamed(CHAT.speech(asked(CHAT), "r1"), whole, *pieces)
    assert last["choices"][0]["delta"] == {"thinking_blocks": [SIGNED]}


@pytest.mark.parametrize("pieces", [(), (chunk(text="반"),)], ids=["before a word", "after a word"])
def test_a_response_that_fails_says_so_whatever_was_said(pieces: tuple[Chunk, ...]) -> None:
    speech = RESPONSES.speech(asked(RESPONSES), "r1")
    error = Error.of(ErrorType.UPSTREAM_RATE_LIMITED, "r1", "잠시 후 다시")
    first, *_, last = said(b"".join(map(speech.piece, pieces)) + speech.error(error, 429))
    check(EVENTS, last)
    assert (first["type"], last["type"]) == ("response.created", "response.failed")
    assert last["response"]["error"] == {"code": "rate_limit_exceeded", "message": "잠시 후 다시"}
    assert [item["status"] for item in last["response"]["output"]] == ["incomplete"] * len(pieces)
    assert last["llm"]["request_id"] == "r1"


def test_a_conversation_of_items_becomes_turns() -> None:
    call = {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "음"}]}
    made = turns(
        "짧게",
        [
            {"role": "user", "content": "날씨?"},
            thought,
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "보자"}]},
            call,
            {**call, "call_id": "b"},
            {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "맑음"}]},
            {"type": "function_call_output", "call_id": "b", "output": "흐림"},
            {"role": "assistant", "content": "맑다"},
            {"role": "assistant", "content": "흐리다"},
            {"role": "developer", "content": "존댓말로"},
        ],
    )
    assert [turn["role"] for turn in made] == [
        "system", "user", "assistant", "tool", "tool", "assistant", "assistant", "developer"
    ]  # fmt: skip
    assert (made[2]["reasoning_content"], made[2]["content"]) == ("음", "보자")
    assert [each["id"] for each in made[2]["tool_calls"]] == ["a", "b"]
    assert [turn["content"] for turn in made[3:5]] == ["맑음", "흐림"]


def test_a_providers_own_record_of_its_thinking_comes_back_through_the_client() -> None:
    whole = reply(reasoning="흐린가?", thinking_blocks=(SIGNED,), tool_calls=(CALL,))
    output = RESPONSES.answer(asked(RESPONSES), whole)["output"]
    again = [
        {"role": "user", "content": "날씨?"},
        *output,
        {"type": "function_call_output", "call_id": "a", "output": "맑음"},
    ]
    messages = read(RESPONSES, input=again).request.messages
    assert messages is not None
    assert messages[1].thinking_blocks == [SIGNED]
    message = CHAT.answer(asked(CHAT), whole)["choices"][0]["message"]
    chat = read(CHAT, messages=[{"role": "user", "content": "날씨?"}, json.loads(json.dumps(message))]).request.messages
    assert chat is not None
    assert (chat[1].thinking_blocks, chat[1].tool_calls) == ([SIGNED], [CALL])


@pytest.mark.parametrize(("said", "meant"), [("minimal", "low"), ("xhigh", "high"), ("max", "high"), ("none", "none")])
def test_efforts_of_openais_own_are_told_in_words_that_all_providers_know(said: str, meant: str) -> None:
    chat = read(CHAT, messages=[{"role": "user", "content": "?"}], reasoning_effort=said)
    response = read(RESPONSES, input="?", reasoning={"effort": said})
    assert chat.request.preferences.reasoning_effort == response.request.preferences.reasoning_effort == meant


def test_what_asks_for_nothing_is_no_error() -> None:
    nothing = {
        "n": 1, "logprobs": False, "top_logprobs": 0, "functions": [], "modalities": ["text"], "tools": [],
        "stop": None, "stream": None, "response_format": {"type": "text"}, "store": True, "service_tier": "flex",
        "whatever": {"is": "new"},
    }  # fmt: skip
    made = read(CHAT, messages=[{"role": "user", "content": "안녕"}], user="김", **nothing)
    assert (made.capability, made.sse, made.request.model, made.request.tools) == ("chat", False, None, None)
    assert made.request.model_extra == {"user": "김"}


@pytest.mark.parametrize(
    ("kind", "message", "param", "code"),
    [
        (ErrorType.BAD_REQUEST, "messages.3.content.0.type: no", "messages[3].content[0].type", "bad_request"),
        (ErrorType.BAD_REQUEST, "body: empty prompt", None, "bad_request"),
        (ErrorType.BAD_REQUEST, "the body nests deeper: remove it", None, "bad_request"),
        (ErrorType.NO_ROUTE, "unknown model 'gpt'; known are: a", "model", "model_not_found"),
        (ErrorType.NO_ROUTE, "unknown capability 'x'; known are: a", "capability", "no_route"),
        (ErrorType.NO_ROUTE, "GET /v2 is no door of this edge", None, "no_route"),
        (ErrorType.UPSTREAM_ERROR, "primary: no", None, "upstream_error"),
    ],
)
def test_an_error_names_its_field_where_that_is_known(
    kind: ErrorType, message: str, param: str | None, code: str
) -> None:
    body = error_body(Error.of(kind, "r1", message), 400, "openai")["error"]
    assert (body["param"], body["code"]) == (param, code)
