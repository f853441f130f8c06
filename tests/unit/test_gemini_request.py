"""What Gemini is sent, read back with Google's own types, which forbid what they do not know."""

import json
from typing import Any

import pytest
from google.genai import types
from pydantic import BaseModel, ConfigDict, Field

from adapters.providers.gemini_request import request_body
from router.errors import AttemptError
from schemas.failure import FailureKind
from schemas.request import Chat

ASKED = "서울 날씨를 알려 주세요 🙂"
SIGNATURE = "CiQBPz8+c2lnbmVk"
SCHEMA = {
    "type": "object",
    "properties": {"도시": {"type": "string", "default": None}, "at": {"$ref": "#/$defs/at"}},
    "$defs": {"at": {"type": "integer"}},
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "날씨", "parameters": SCHEMA}}


class Request(BaseModel):
    """`GenerateContentRequest`, which the SDK has in parts only."""

    model_config = ConfigDict(extra="forbid", val_json_bytes="base64")

    contents: list[types.Content]
    system_instruction: types.Content | None = Field(default=None, alias="systemInstruction")
    tools: list[types.Tool] | None = None
    tool_config: types.ToolConfig | None = Field(default=None, alias="toolConfig")
    generation_config: types.GenerationConfig | None = Field(default=None, alias="generationConfig")


def sent(name: str = "gemini-2.5-flash", **chat: Any) -> tuple[Request, dict[str, Any]]:
    asked = Chat.model_validate({"messages": [{"role": "user", "content": ASKED}], **chat})
    body = request_body(name, asked)
    return Request.model_validate_json(json.dumps(body)), body


def refused(name: str = "gemini-2.5-flash", **chat: Any) -> FailureKind:
    with pytest.raises(AttemptError) as caught:
        sent(name, **chat)
    return caught.value.failure.kind


def parts(request: Request, at: int) -> list[types.Part]:
    return request.contents[at].parts or []


def called(call_id: str, name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_nothing_is_sent_that_was_not_asked_for() -> None:
    assert sent()[1] == {"contents": [{"role": "user", "parts": [{"text": ASKED}]}]}


def test_a_whole_conversation() -> None:
    signed = {"extra_content": {"google": {"thought_signature": SIGNATURE}}}
    turns = [
        {"role": "system", "content": "짧게"},
        {"role": "user", "content": [{"type": "text", "text": "이건?"},
                                     {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                                     {"type": "image_url", "image_url": {"url": "https://x.kr/강.jpg?a=1"}},
                                     {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk="}}]},
        {"role": "developer", "content": [{"type": "text", "text": "한국어로"}]},
        {"role": "assistant", "content": "볼게요", "tool_calls": [called("a", "weather", '{"도시": "서울"}', **signed),
                                                               called("b", "clock", "")]},
        {"role": "tool", "tool_call_id": "b", "content": "아홉 시"},
        {"role": "tool", "tool_call_id": "a", "content": '{"맑음": null}'},
        {"role": "user", "content": ""},
        {"role": "user", "content": "그래서?"},
    ]  # fmt: skip
    request, body = sent(messages=turns)
    assert request.system_instruction is not None
    assert [part.text for part in request.system_instruction.parts or ()] == ["짧게", "한국어로"]
    assert [content.role for content in request.contents] == ["user", "model", "user", "user"]
    _, image, linked, file = parts(request, 0)
    assert file.inline_data == types.Blob(mime_type="application/pdf", data=b"hi")
    assert image.inline_data == types.Blob(mime_type="image/png", data=b"hi")
    assert linked.file_data == types.FileData(mime_type="image/jpeg", file_uri="https://x.kr/강.jpg?a=1")
    assert body["contents"][1]["parts"] == [
        {"text": "볼게요"},
        {"functionCall": {"id": "a", "name": "weather", "args": {"도시": "서울"}}, "thoughtSignature": SIGNATURE},
        {"functionCall": {"id": "b", "name": "clock", "args": {}}},
    ]
    assert body["contents"][2]["parts"] == [
        {"functionResponse": {"id": "b", "name": "clock", "response": {"output": "아홉 시"}}},
        {"functionResponse": {"id": "a", "name": "weather", "response": {"맑음": None}}},
    ]


@pytest.mark.parametrize("text", ["맑음", "[1]", "5", "null", ""])
def test_a_result_that_is_no_object_is_wrapped(text: str) -> None:
    turns = [
        {"role": "assistant", "tool_calls": [called("a", "weather")]},
        {"role": "tool", "tool_call_id": "a", "content": text},
    ]
    request, _ = sent(messages=turns)
    (part,) = parts(request, 1)
    assert part.function_response is not None
    assert part.function_response.response == {"output": text}


@pytest.mark.parametrize(
    ("name", "marked"),
    [
        ("gemini-2.5-flash", False),
        ("gemini-3-pro-preview", True),
        ("gemini-3.5-flash", True),
        ("gemini-flash-latest", True),
    ],
)
def test_a_call_that_another_model_made_is_marked_where_signatures_are_checked(name: str, *, marked: bool) -> None:
    turns = [{"role": "assistant", "tool_calls": [called("a", "weather"), called("b", "clock")]}]
    request, _ = sent(name, messages=turns)
    first, second = parts(request, 0)
    assert (first.thought_signature is not None) == marked
    assert second.thought_signature is None


def test_results_of_two_rounds_stay_apart_and_find_the_latest_call_of_their_id() -> None:
    turns: list[dict[str, Any]] = []
    for name in ("weather", "clock"):
        turns.append({"role": "assistant", "tool_calls": [called("call_0", name)]})
        turns.append({"role": "tool", "tool_call_id": "call_0", "content": "{}"})
    request, _ = sent(messages=turns)
    results = [part.function_response for at in (1, 3) for part in parts(request, at)]
    assert [result and result.name for result in results] == ["weather", "clock"]


def test_tools_keep_their_json_schema_as_it_is() -> None:
    request, body = sent(tools=[TOOL, {"type": "function", "function": {"name": "clock"}}])
    assert request.tools is not None
    assert body["tools"][0]["functionDeclarations"] == [
        {"name": "weather", "description": "날씨", "parametersJsonSchema": SCHEMA},
        {"name": "clock"},
    ]
    assert "toolConfig" not in body


@pytest.mark.parametrize(
    ("choice", "mode", "names"),
    [("auto", "AUTO", None), ("none", "NONE", None), ("required", "ANY", None), ("any", "ANY", None),
     ({"type": "function", "function": {"name": "weather"}}, "ANY", ["weather"])],
)  # fmt: skip
def test_tool_choice(choice: Any, mode: str, names: list[str] | None) -> None:
    request, _ = sent(tools=[TOOL], tool_choice=choice)
    assert request.tool_config is not None
    assert request.tool_config.function_calling_config is not None
    assert request.tool_config.function_calling_config.mode == types.FunctionCallingConfigMode(mode)
    assert request.tool_config.function_calling_config.allowed_function_names == names
    assert "toolConfig" not in sent(tool_choice=choice)[1]


@pytest.mark.parametrize(
    ("wish", "config"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"responseMimeType": "application/json"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
         {"responseMimeType": "application/json", "responseJsonSchema": SCHEMA}),
    ],
)  # fmt: skip
def test_output_formats(wish: dict[str, Any], config: dict[str, Any] | None) -> None:
    assert sent(response_format=wish)[1].get("generationConfig") == config


def test_wishes() -> None:
    request, _ = sent(max_tokens=5, temperature=0, top_p=0.5, seed=0, stop=["끝", "\n"])
    config = request.generation_config
    assert config is not None
    assert (config.max_output_tokens, config.temperature, config.top_p, config.seed) == (5, 0, 0.5, 0)
    assert config.stop_sequences == ["끝", "\n"]
    assert config.thinking_config is None


@pytest.mark.parametrize(
    ("name", "effort", "config"),
    [
        ("gemini-2.5-flash", "none", types.ThinkingConfig(thinking_budget=0)),
        ("gemini-2.5-flash", "low", types.ThinkingConfig(thinking_budget=1024, include_thoughts=True)),
        ("models/gemini-2.5-pro", "medium", types.ThinkingConfig(thinking_budget=8192, include_thoughts=True)),
        ("gemini-2.5-flash", "high", types.ThinkingConfig(thinking_budget=24576, include_thoughts=True)),
        ("gemini-3-flash-preview", "none", types.ThinkingConfig(thinking_level=types.ThinkingLevel.MINIMAL)),
        ("gemini-3-pro-preview", "low",
         types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW, include_thoughts=True)),
        ("gemini-flash-latest", "high",
         types.ThinkingConfig(thinking_level=types.ThinkingLevel.HIGH, include_thoughts=True)),
        ("gemini-2.0-flash", "high", None),
        ("gemini-2.5-flash", None, None),
        ("gemini-2.5-flash", "auto", None),
    ],
)  # fmt: skip
def test_how_long_it_may_think(name: str, effort: str | None, config: types.ThinkingConfig | None) -> None:
    request, _ = sent(name, reasoning_effort=effort, temperature=1)
    assert request.generation_config is not None
    assert request.generation_config.thinking_config == config


@pytest.mark.parametrize(
    "chat",
    [
        {"stop": ["1", "2", "3", "4", "5", "6"]},
        {"response_format": {"type": "grammar"}},
        {"response_format": {"type": "json_object"}, "tools": [TOOL]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x.kr/a.png"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,hi"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "aGk="}}]}]},
        {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://x.kr/a"}}]}]},
    ],
    ids=range(9),
)
def test_what_it_cannot_do_is_refused_before_the_call(chat: dict[str, Any]) -> None:
    assert refused(**chat) is FailureKind.UNSUPPORTED


def test_what_only_some_models_can_do() -> None:
    assert refused("gemini-2.5-pro", reasoning_effort="none") is FailureKind.UNSUPPORTED
    sent("gemini-3-flash-preview", response_format={"type": "json_object"}, tools=[TOOL])


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "tool_calls": [called("a", "weather", "{")]},
        {"role": "assistant", "tool_calls": [called("a", "weather", "[]")]},
        {"role": "assistant", "tool_calls": [{"id": "a"}]},
        {"role": "tool", "tool_call_id": "nobody", "content": "맑음"},
    ],
)
def test_a_broken_conversation_is_the_clients_fault(turn: dict[str, Any]) -> None:
    assert refused(messages=[turn]) is FailureKind.BAD_REQUEST
