"""What each dialect says and hears, judged by a mock of all four vendors that others wrote."""

import json
from typing import Any

import pytest

from router.ports import Progress, ToolCallPiece
from tests.support.aimock import Aimock
from tests.support.dialects import ASKED, CANARY, THINKS, ask, call, every

pytestmark = pytest.mark.node

TEXT = "안녕하세요, 서울은 맑고 지금은 아홉 시입니다."
USAGE = {"prompt_tokens": 21, "completion_tokens": 9}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "날씨를 알려 준다",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
KEY_HEADERS = {
    "openai": "authorization",
    "anthropic": "x-api-key",
    "gemini": "x-goog-api-key",
    "cohere": "authorization",
}


@every()
async def test_a_text_comes_in_pieces_with_its_usage_for_one_request(aimock: Aimock, dialect: str) -> None:
    await aimock.teach({"response": {"content": TEXT, "usage": USAGE}, "chunkSize": 4})
    pieces: list[str] = []
    answer = await ask(dialect, aimock.url, progress=Progress(pieces.append))
    assert answer.text == "".join(pieces) == TEXT
    assert len(pieces) == -(-len(TEXT) // 4)
    assert answer.finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.tokens_in, answer.usage.tokens_out) == (21, 9)
    [asked] = await aimock.asked()
    assert asked["body"]["messages"] == [{"role": "user", "content": ASKED}]
    assert asked["body"]["stream"] is True


@every()
async def test_the_key_goes_in_the_header_of_its_vendor_and_nowhere_else(aimock: Aimock, dialect: str) -> None:
    await aimock.teach({"response": {"content": TEXT}})
    await ask(dialect, aimock.url)
    [asked] = await aimock.asked()
    # aimock blackens what it knows to be a vendor's key header, and only that.
    assert asked["headers"][KEY_HEADERS[dialect]] == "[REDACTED]"
    assert CANARY not in json.dumps(asked)


@every()
async def test_several_tool_calls_come_whole_and_in_pieces(aimock: Aimock, dialect: str) -> None:
    calls = [
        {"name": "weather", "arguments": {"city": "서울특별시 종로구"}, "id": "call_a"},
        {"name": "clock", "arguments": {"zone": 9}, "id": "call_b"},
    ]
    response: dict[str, Any] = {"toolCalls": calls, "usage": USAGE}
    if dialect == "gemini":
        response["finishReason"] = "stop"  # as Gemini ends its calls; aimock's own FUNCTION_CALL is no word of Gemini's
    await aimock.teach({"response": response, "chunkSize": 5})
    pieces: list[ToolCallPiece] = []
    answer = await ask(dialect, aimock.url, call(dialect, tools=[WEATHER, CLOCK]), Progress(on_tool_call=pieces.append))
    assert answer.finish_reason == "tool_calls"
    assert [(made["id"], made["function"]["name"]) for made in answer.tool_calls] == [
        ("call_a", "weather"),
        ("call_b", "clock"),
    ]
    for at, (made, wanted) in enumerate(zip(answer.tool_calls, calls, strict=True)):
        assert json.loads(made["function"]["arguments"]) == wanted["arguments"]
        told = [piece for piece in pieces if piece.index == at]
        assert "".join(piece.arguments for piece in told) == made["function"]["arguments"]
        assert (told[0].id, told[0].name) == (made["id"], made["function"]["name"])
    [asked] = await aimock.asked()
    heard = {tool["function"]["name"]: tool["function"] for tool in asked["body"]["tools"]}
    assert heard.keys() == {"weather", "clock"}
    assert heard["weather"]["description"] == "날씨를 알려 준다"


# Its Cohere says its thoughts as text, which Cohere does not.
@every(*THINKS)
async def test_thinking_is_kept_apart_from_the_answer(aimock: Aimock, dialect: str) -> None:
    await aimock.teach({"response": {"content": TEXT, "reasoning": "음, 생각해 보면"}, "chunkSize": 3})
    thoughts: list[str] = []
    answer = await ask(
        dialect, aimock.url, call(dialect, backend=THINKS[dialect]), Progress(on_reasoning=thoughts.append)
    )
    assert answer.text == TEXT
    assert answer.reasoning == "".join(thoughts) == "음, 생각해 보면"


@every()
async def test_a_conversation_with_tools_is_heard_as_it_was_meant(aimock: Aimock, dialect: str) -> None:
    await aimock.teach({"response": {"content": TEXT}})
    made = [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for name, arguments in (("weather", {"city": "서울"}), ("clock", {}))
    ]
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "짧게 답하라"},
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": "찾아보겠습니다.", "tool_calls": made},
        {"role": "tool", "tool_call_id": "call_weather", "content": "맑음, 21도"},
        {"role": "tool", "tool_call_id": "call_clock", "content": "09:00"},
    ]
    await ask(dialect, aimock.url, call(dialect, messages=turns, tools=[WEATHER, CLOCK], max_tokens=50))
    [asked] = await aimock.asked()
    body = asked["body"]
    assert [turn["role"] for turn in body["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    system, user, assistant, *results = body["messages"]
    assert (system["content"], user["content"]) == ("짧게 답하라", ASKED)
    assert [json.loads(heard["function"]["arguments"]) for heard in assistant["tool_calls"]] == [{"city": "서울"}, {}]
    ids = [heard["id"] for heard in assistant["tool_calls"]]
    assert [result["tool_call_id"] for result in results] == ids
    assert ["맑음" in results[0]["content"], "09:00" in results[1]["content"]] == [True, True]
    assert body["max_tokens"] == 50


# It shows the bodies of OpenAI and Cohere with what it does not itself use.
@every("openai", "cohere")
async def test_a_wanted_schema_is_sent_and_its_json_is_the_answer(aimock: Aimock, dialect: str) -> None:
    await aimock.teach({"response": {"content": {"city": "서울", "sunny": True}}, "chunkSize": 3})
    wish = {"type": "json_schema", "json_schema": {"name": "sky", "schema": SCHEMA, "strict": True}}
    answer = await ask(dialect, aimock.url, call(dialect, response_format=wish))
    assert json.loads(answer.text) == {"city": "서울", "sunny": True}
    [asked] = await aimock.asked()
    assert json.dumps(SCHEMA["properties"]) in json.dumps(asked["body"]["response_format"])


@every("anthropic", "gemini")
async def test_json_is_the_answer_where_a_schema_was_wanted(aimock: Aimock, dialect: str) -> None:
    await aimock.teach({"response": {"content": {"city": "서울", "sunny": True}}, "chunkSize": 3})
    wish = {"type": "json_schema", "json_schema": {"name": "sky", "schema": SCHEMA, "strict": True}}
    answer = await ask(dialect, aimock.url, call(dialect, response_format=wish))
    assert json.loads(answer.text) == {"city": "서울", "sunny": True}


@every()
async def test_a_picture_leaves_the_words_beside_it_as_they_are(aimock: Aimock, dialect: str) -> None:
    await aimock.teach({"response": {"content": TEXT}})
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    parts = [{"type": "text", "text": "이게 뭐죠?"}, picture]
    await ask(dialect, aimock.url, call(dialect, messages=[{"role": "user", "content": parts}]))
    [asked] = await aimock.asked()
    [heard] = asked["body"]["messages"]
    # Of the others' messages it keeps the words only.
    assert heard["content"] == (parts if dialect == "openai" else "이게 뭐죠?")


@every()
async def test_an_answer_cut_by_its_limit_says_so(aimock: Aimock, dialect: str) -> None:
    await aimock.teach({"response": {"content": TEXT, "finishReason": "length"}})
    answer = await ask(dialect, aimock.url)
    assert (answer.text, answer.finish_reason) == (TEXT, "length")
