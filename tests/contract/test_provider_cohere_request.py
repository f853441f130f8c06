"""What Cohere is sent, held against the types of its SDK, and what it cannot be asked."""

from typing import Any

import pytest
from cohere.core.unchecked_base_model import construct_type
from cohere.types import ChatMessageV2, JsonObjectResponseFormatV2, Thinking, ToolV2
from pydantic import BaseModel

from adapters.providers.cohere import Cohere, request_body
from router.errors import AttemptError
from router.ports import Progress
from schemas.failure import FailureKind
from tests.support.cohere_speech import MODEL, RECORDED, WEATHER, call, streaming
from tests.support.scripted_upstream import ScriptedUpstream


def checked(sdk_type: Any, value: dict[str, Any]) -> None:
    """That `value` is of Cohere's own type, which says nothing of its own accord: with all its fields and no other."""
    built = construct_type(type_=sdk_type, object_=value)
    assert isinstance(built, BaseModel)
    type(built).model_validate(value)
    _no_extra(built)


def _no_extra(built: Any) -> None:
    if isinstance(built, BaseModel):
        assert not built.model_extra, built
        for name in type(built).model_fields:
            _no_extra(getattr(built, name))
    elif isinstance(built, list):
        for item in built:
            _no_extra(item)


def test_the_request_in_coheres_words() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    tool_call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"도시":"서울"}'}}
    foreign = {"type": "thinking", "thinking": "음", "signature": "x"}
    chat = call(
        messages=[
            {"role": "developer", "content": "짧게"},
            {"role": "user", "content": [{"type": "text", "text": "이게 뭐죠?"}, picture]},
            {"role": "assistant", "content": None, "tool_calls": [tool_call], "thinking_blocks": [foreign]},
            {"role": "tool", "content": "맑음", "tool_call_id": "c1", "name": "weather"},
            {"role": "assistant", "content": "맑아요"},
        ],
        tools=[WEATHER, {"type": "function", "function": {"name": "clock", "strict": True}}], tool_choice="required",
        max_tokens=5, temperature=0.5, top_p=0.5, stop=("끝",), seed=7, reasoning_effort="low",
    ).chat  # fmt: skip
    body = request_body(MODEL, chat)
    for sdk_type, values in ((ChatMessageV2, body["messages"]), (ToolV2, body["tools"])):
        for value in values:
            checked(sdk_type, value)
    checked(Thinking, body["thinking"])
    assert body == {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "짧게"},
            {"role": "user", "content": [{"type": "text", "text": "이게 뭐죠?"}, picture]},
            {"role": "assistant", "tool_calls": [tool_call]},
            {"role": "tool", "tool_call_id": "c1", "content": "맑음"},
            {"role": "assistant", "content": "맑아요"},
        ],
        "stream": True,
        "max_tokens": 5,
        "temperature": 0.5,
        "p": 0.5,
        "stop_sequences": ("끝",),
        "seed": 7,
        "tools": [
            WEATHER,
            {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
        ],
        "strict_tools": True,
        "tool_choice": "REQUIRED",
        "thinking": {"type": "enabled", "token_budget": 1024},
    }


@pytest.mark.parametrize(
    ("wish", "sent"),
    [
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"response_format": {"type": "json_object", "json_schema": {"type": "object"}}},
        ),
        ({"tool_choice": "required"}, {}),  # without tools it would be refused
        ({"tools": [WEATHER], "tool_choice": "none"}, {"tools": [WEATHER], "tool_choice": "NONE"}),
        ({"tools": [WEATHER], "tool_choice": "auto"}, {"tools": [WEATHER]}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": "high"}, {"thinking": {"type": "enabled"}}),
        ({"top_p": 1}, {"p": 0.99}),
        ({"temperature": 0}, {"temperature": 0}),
    ],
)
def test_wishes(wish: dict[str, Any], sent: dict[str, Any]) -> None:
    body = request_body(MODEL, call(**wish).chat)
    bare = request_body(MODEL, call().chat)
    assert {name: value for name, value in body.items() if name not in bare} == sent
    if "response_format" in sent:
        checked(JsonObjectResponseFormatV2, body["response_format"])


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def calling(**call: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


@pytest.mark.parametrize(
    ("chat", "kind"),
    [
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
         FailureKind.UNSUPPORTED),
        ({"tools": [{"type": "web_search"}]}, FailureKind.UNSUPPORTED),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, FailureKind.UNSUPPORTED),
        ({"response_format": {"type": "grammar"}}, FailureKind.UNSUPPORTED),
        ({"temperature": 1.1}, FailureKind.UNSUPPORTED),
        ({"stop": tuple("가나다라마바")}, FailureKind.UNSUPPORTED),
        (user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}), FailureKind.UNSUPPORTED),
        ({"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": "http://x/a.png"}]}]},
         FailureKind.UNSUPPORTED),
        ({"tools": [{"type": "function", "function": {}}]}, FailureKind.BAD_REQUEST),
        (calling(id="1", function={}), FailureKind.BAD_REQUEST),
        (calling(function={"name": "f"}), FailureKind.BAD_REQUEST),
        ({"messages": [{"role": "tool", "content": "맑음"}]}, FailureKind.BAD_REQUEST),
    ],
)  # fmt: skip
async def test_what_cohere_cannot_do_is_known_before_the_call(chat: dict[str, Any], kind: FailureKind) -> None:
    async with ScriptedUpstream(streaming(RECORDED)) as upstream:
        provider = Cohere(upstream.url)
        with pytest.raises(AttemptError) as caught:
            await provider.chat(call(**chat), Progress())
        await provider.aclose()
        assert not upstream.exchanges
    assert caught.value.failure.kind is kind
