"""What Anthropic is asked, each body judged by the vendor's own types."""

from typing import Any

import pytest
from anthropic.types import message_create_params
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from adapters.providers.anthropic_request import DEFAULT_MAX_TOKENS, THINKING_TOKENS, generation, request_body
from router.errors import AttemptError
from schemas.failure import FailureKind
from schemas.request import Chat
from tests.support.anthropic_speech import MODEL, SEALED, SIGNATURE, THOUGHT
from tests.support.openai_speech import ASKED
from tests.support.sdk_types import check


@with_config(ConfigDict(extra="forbid"))
class _Params(message_create_params.MessageCreateParamsStreaming, total=False):
    """The vendor's, and nothing else; temperature and top_p are of an older version of the API than its types."""

    temperature: float
    top_p: float


PARAMS: TypeAdapter[_Params] = TypeAdapter(_Params)
OLD = "claude-haiku-4-5-20251001"
NEW = "claude-opus-4-8"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "날씨",
        "parameters": {"type": "object", "properties": {"도시": {"type": "string"}}, "required": ["도시"]},
    },
}
CACHE = {"type": "ephemeral"}


def body_of(*turns: dict[str, Any], backend: str = MODEL, **chat: Any) -> dict[str, Any]:
    messages = turns or ({"role": "user", "content": ASKED},)
    body = request_body(backend, Chat.model_validate({"messages": messages, **chat}))
    check(PARAMS, body)
    return body


def refused(*turns: dict[str, Any], backend: str = MODEL, **chat: Any) -> FailureKind:
    with pytest.raises(AttemptError) as caught:
        body_of(*turns, backend=backend, **chat)
    return caught.value.failure.kind


def tool_call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_plain_question() -> None:
    assert body_of() == {
        "model": MODEL,
        "max_tokens": DEFAULT_MAX_TOKENS,
        "messages": [{"role": "user", "content": [{"type": "text", "text": ASKED}]}],
        "stream": True,
    }


def test_the_types_judge_what_is_deep_within_too() -> None:
    with pytest.raises(ValidationError):
        check(PARAMS, body_of() | {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]})


def test_settings() -> None:
    body = body_of(max_tokens=5, temperature=0.5, top_p=0.9, stop=("끝", "END"), tool_choice="auto")
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (5, 0.5, 0.9)
    assert list(body["stop_sequences"]) == ["끝", "END"]
    assert "tool_choice" not in body  # without tools it would be refused


def test_a_conversation_with_tools_in_anthropics_words() -> None:
    thoughts = [
        {"type": "thinking", "thinking": THOUGHT, "signature": SIGNATURE},
        {"type": "redacted_thinking", "data": SEALED},
    ]
    elsewhere = {"type": "reasoning.encrypted", "data": "another provider's"}
    body = body_of(
        {"role": "system", "content": "짧게 답하세요"},
        {"role": "developer", "content": [{"type": "text", "text": "한국어로", "cache_control": CACHE}]},
        {"role": "user", "content": "서울과 부산 날씨는?"},
        {
            "role": "assistant",
            "content": "찾아보겠습니다",
            "thinking_blocks": [*thoughts, elsewhere],
            "tool_calls": [tool_call("a", "weather", '{"도시":"서울"}'), tool_call("b", "weather", {"도시": "부산"})],
        },
        {"role": "tool", "tool_call_id": "a", "content": "맑음"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "비"}]},
        {"role": "user", "content": "고마워요"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "내일은?"},
        tools=[WEATHER],
    )
    assert body["system"] == [
        {"type": "text", "text": "짧게 답하세요"},
        {"type": "text", "text": "한국어로", "cache_control": CACHE},
    ]
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "서울과 부산 날씨는?"}]},
        {
            "role": "assistant",
            "content": [
                *thoughts,
                {"type": "text", "text": "찾아보겠습니다"},
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"도시": "서울"}},
                {"type": "tool_use", "id": "b", "name": "weather", "input": {"도시": "부산"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "맑음"}]},
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "비"}]},
                {"type": "text", "text": "고마워요"},
                {"type": "text", "text": "내일은?"},
            ],
        },
    ]
    assert body["tools"] == [
        {"name": "weather", "description": "날씨", "input_schema": WEATHER["function"]["parameters"]}  # type: ignore[index]
    ]


def test_images() -> None:
    body = body_of(
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "이게 뭐죠?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}, "cache_control": CACHE},
                {"type": "image_url", "image_url": {"url": "https://example.com/고양이.webp"}},
            ],
        }
    )
    assert body["messages"][0]["content"][1:] == [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
            "cache_control": CACHE,
        },
        {"type": "image", "source": {"type": "url", "url": "https://example.com/고양이.webp"}},
    ]


def test_a_file_that_is_a_pdf() -> None:
    file = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "항만.pdf"}}
    body = body_of({"role": "user", "content": [file, {"type": "text", "text": "요약해 줘"}]})
    source = {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}
    assert body["messages"][0]["content"][0] == {"type": "document", "source": source, "title": "항만.pdf"}


@pytest.mark.parametrize(
    ("wish", "choice"),
    [("auto", {"type": "auto"}), ("none", {"type": "none"}), ("required", {"type": "any"}),
     ({"type": "function", "function": {"name": "weather"}}, {"type": "tool", "name": "weather"})],
)  # fmt: skip
def test_tool_choice(wish: Any, choice: dict[str, Any]) -> None:
    assert body_of(tools=[WEATHER], tool_choice=wish)["tool_choice"] == choice


def test_tools_may_be_strict_cached_and_without_parameters() -> None:
    tool = {"type": "function", "function": {"name": "now", "strict": True}, "cache_control": CACHE}
    assert body_of(tools=[tool])["tools"] == [
        {
            "name": "now",
            "input_schema": {"type": "object", "properties": {}},
            "strict": True,
            "cache_control": CACHE,
        }
    ]


def test_an_answer_by_a_schema_and_the_effort_stand_side_by_side() -> None:
    schema = {"type": "object", "properties": {"도시": {"type": "string"}}, "additionalProperties": False}
    wish = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}}
    body = body_of(response_format=wish, reasoning_effort="low")
    assert body["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    assert body["thinking"] == {"type": "adaptive"}
    assert "output_config" not in body_of(response_format={"type": "text"})


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_how_hard_a_model_thinks_is_said_in_the_words_of_its_generation(effort: str) -> None:
    for backend in (MODEL, NEW, "claude-fable-5", "claude-mythos-preview", "our-own-alias"):
        body = body_of(backend=backend, reasoning_effort=effort)
        assert (body["thinking"], body["output_config"]) == ({"type": "adaptive"}, {"effort": effort})
    body = body_of(backend=OLD, reasoning_effort=effort)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": THINKING_TOKENS[effort]}
    assert body["max_tokens"] == DEFAULT_MAX_TOKENS + THINKING_TOKENS[effort]
    assert "output_config" not in body
    body = body_of(backend=OLD, reasoning_effort=effort, max_tokens=2500)
    assert body["thinking"]["budget_tokens"] == 1250
    assert body["max_tokens"] == 2500


def test_thinking_is_left_as_it_is_unless_somebody_wishes() -> None:
    assert "thinking" not in body_of()
    assert body_of(reasoning_effort="auto")["thinking"] == {"type": "adaptive"}
    assert body_of(reasoning_effort="auto", backend=OLD).keys() == body_of(backend=OLD).keys()
    assert body_of(reasoning_effort="none")["thinking"] == {"type": "disabled"}


@pytest.mark.parametrize(
    ("name", "found"),
    [("claude-3-7-sonnet-20250219", (3, 7)), ("claude-sonnet-4-20250514", (4, 0)), ("claude-opus-4-1", (4, 1)),
     (OLD, (4, 5)), ("claude-haiku-5-5", (5, 5)), ("anthropic/claude-sonnet-4.6", (4, 6)), ("claude-opus-5", (5, 0)),
     ("claude-mythos-preview", None), ("qwen3-coder", None)],
)  # fmt: skip
def test_generations(name: str, found: tuple[int, int] | None) -> None:
    assert generation(name) == found


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    "chat",
    [
        {"seed": 7},
        {"temperature": 1.5},
        {"temperature": 0.2, "backend": NEW},
        {"top_p": 0.9, "backend": NEW},
        {"temperature": 0.2, "reasoning_effort": "low"},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"tools": [WEATHER], "tool_choice": "any"},
        {"tools": [WEATHER], "tool_choice": "required", "reasoning_effort": "low", "backend": OLD},
        {"tools": [{"type": "web_search"}]},
        {"reasoning_effort": "none", "backend": "claude-fable-5"},
        {"reasoning_effort": "low", "backend": OLD, "max_tokens": 2047},
        {"messages": [{"role": "system", "content": "혼자"}]},
        {"messages": [{"role": "system", "content": [PICTURE]}, {"role": "user", "content": "이게 뭐죠?"}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:text/csv;base64,AA"}}]}
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/bmp;base64,AA"}]}]},
    ],
    ids=str,
)
def test_what_anthropic_cannot_do_is_known_before_the_call(chat: dict[str, Any]) -> None:
    asked = dict(chat)
    assert refused(*asked.pop("messages", ()), **asked) is FailureKind.UNSUPPORTED


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": "맑음"},
        {"role": "assistant", "tool_calls": [tool_call("a", "f", "{")]},
        {"role": "assistant", "tool_calls": [tool_call("a", "f", "[1]")]},
        {"role": "assistant", "tool_calls": [{"id": "a"}]},
    ],
)
def test_turns_that_no_dialect_has(turn: dict[str, Any]) -> None:
    assert refused({"role": "user", "content": ASKED}, turn) is FailureKind.BAD_REQUEST
