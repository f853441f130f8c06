"""Anthropic's dialect translated: what comes in means the same on the bus, and what goes out is well formed."""

import json
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.edge.anthropic_messages import Messages
from adapters.edge.anthropic_request import effort, response_format, tool_choice, tools, turns
from adapters.edge.anthropic_speech import MessageSpeech, stopped
from adapters.edge.told import Told
from schemas import Chunk, Reply
from schemas.chunk import ToolCallChunk
from schemas.policy import Policy
from schemas.reply import ReplyMessage, Timings
from tests.support.decisions import small

ASKED = {"role": "user", "content": "항구를 묘사해 줘"}
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
CACHED = {"cache_control": {"type": "ephemeral"}}


def read(headers: dict[str, str] | None = None, **body: Any) -> Any:
    policy: Policy = small()
    return Messages().read(json.dumps({"messages": [ASKED], **body}).encode(), headers or {}, policy)


def test_a_system_may_be_text_or_blocks_and_may_stand_among_the_turns() -> None:
    late = {"role": "system", "content": "이제 짧게"}
    blocks: list[dict[str, Any]] = [{"type": "text", "text": "짧게"}, {"type": "text", "text": "답하라", **CACHED}]
    assert turns("짧게", [ASKED, late]) == [{"role": "system", "content": "짧게"}, ASKED, late]
    assert turns(blocks, [ASKED])[0]["content"] == blocks, "what is to be cached stays marked"
    assert turns([], [ASKED]) == [ASKED]


def test_results_of_tools_come_first_and_their_images_after_them() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": "맑음"},
        {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "없다"}], "is_error": True},
        {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image", "source": PNG}]},
        {"type": "tool_result", "tool_use_id": "d"},
        {"type": "tool_result", "tool_use_id": "e", "content": [{"type": "tool_reference", "tool_name": "clock"}]},
        {"type": "text", "text": "이제는?"},
    ]
    *told, last = turns(None, [{"role": "user", "content": results}])
    assert [(turn["role"], turn["tool_call_id"], turn["content"]) for turn in told] == [
        ("tool", "a", "맑음"),
        ("tool", "b", "Error: 없다"),
        ("tool", "c", "[see below]"),
        ("tool", "d", ""),
        ("tool", "e", "[tool_reference left out: it is neither text nor image nor document]"),
    ]
    assert last == {"role": "user", "content": [PICTURE, {"type": "text", "text": "이제는?"}]}


def test_an_earlier_answer_keeps_its_calls_and_of_its_thinking_what_is_signed() -> None:
    content = [
        {"type": "thinking", "thinking": "음", "signature": "서명"},
        {"type": "thinking", "thinking": "누구의 것도 아니다", "signature": ""},
        {"type": "redacted_thinking", "data": "봉인"},
        {"type": "text", "text": "찾아보죠."},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"도시": "서울"}},
    ]
    [turn] = turns(None, [{"role": "assistant", "content": content}])
    assert turn["content"] == "찾아보죠."
    assert turn["thinking_blocks"] == [content[0], content[2]]
    [call] = turn["tool_calls"]
    assert (call["id"], call["function"]["name"]) == ("a", "weather")
    assert json.loads(call["function"]["arguments"]) == {"도시": "서울"}
    assert turns(None, [{"role": "assistant", "content": content[1:2]}]) == [], "nothing is left of such a turn"


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"type": "image", "source": PNG}, PICTURE),
        (
            {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
            {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
        ),
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "본문"}},
            {"type": "text", "text": "본문"},
        ),
        (
            {"type": "document", "source": {**PNG, "media_type": "application/pdf"}, "title": "항만.pdf"},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,iVBORw0KGgo=", "filename": "항만.pdf"}},
        ),
        (
            {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "찾음"}]},
            {"type": "text", "text": "찾음"},
        ),
        ({"type": "of_tomorrow", "text": "내일"}, {"type": "text", "text": "내일"}),
        ({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, None),
    ],
)
def test_blocks_of_many_kinds_are_taken(block: dict[str, Any], part: dict[str, Any] | None) -> None:
    told = turns(None, [{"role": "user", "content": [{"type": "text", "text": "자,"}, block]}])
    text: dict[str, Any] = {"type": "text", "text": "자,"}
    parts = [text, part] if part else [text]
    assert told == [{"role": "user", "content": parts}] or told[0]["content"] == "\n\n".join(p["text"] for p in parts)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: turns(None, [{"role": "user", "content": 7}]), "text or a list of blocks"),
        (lambda: turns(None, [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]), "image"),
        (lambda: tools([{"type": "web_search_20250305", "name": "web_search"}]), "web_search_20250305"),
        (lambda: tool_choice({"type": "perhaps"}), "tool_choice"),
        (lambda: effort({"type": "enabled"}), "budget_tokens"),
        (lambda: response_format({"type": "xml"}), "json_schema"),
    ],
)
def test_what_would_be_answered_wrongly_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


def test_choices_of_tools_and_of_thinking_have_their_words_on_the_bus() -> None:
    choices = [{"type": "auto"}, {"type": "any"}, {"type": "none"}, {"type": "tool", "name": "clock"}, None]
    named = {"type": "function", "function": {"name": "clock"}}
    assert [*map(tool_choice, choices)] == ["auto", "required", "none", named, None]
    budgets = [{"type": "enabled", "budget_tokens": tokens} for tokens in (1024, 10_000, 31_999)]
    asked = [*budgets, {"type": "adaptive"}, {"type": "disabled"}, None]
    assert [*map(effort, asked)] == ["low", "medium", "high", "auto", "none", None]
    one = {"type": "any", "disable_parallel_tool_use": True}
    assert read(tools=[{"name": "clock", "input_schema": {}}], tool_choice=one).request.parallel_tool_calls is False


def test_a_session_a_patience_and_the_routers_own_fields_are_taken_along() -> None:
    headers = {"x-claude-code-session-id": "s-1", "x-stainless-timeout": "600", "x-llm-task": "code"}
    asked = read(headers, metadata={"user_id": "u"}, top_k=5, of_tomorrow={}, stop_sequences=["끝"], max_tokens=9)
    assert asked.request.metadata == {"user_id": "u", "session_id": "s-1"}
    assert (asked.request.deadline_ms, asked.request.task) == (600_000, "code")
    assert (asked.request.preferences.stop, asked.request.preferences.max_tokens) == (["끝"], 9)
    assert read(headers, deadline_ms=5_000).request.deadline_ms == 5_000
    assert read({"x-stainless-timeout": "None"}).request.deadline_ms == 120_000


def test_a_call_of_a_tool_is_told_before_the_sequence_that_ended_it() -> None:
    ended = reply(content="네").model_copy(update={"finish_reason": "tool_calls", "stop_sequence": "끝"})
    assert stopped(ended) == {"stop_reason": "tool_use", "stop_sequence": None}


KINDS = st.sampled_from(
    ["text", "thinking", "redacted_thinking", "tool_use", "tool_result", "image", "document", "search_result", "new"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = (
    "text",
    "thinking",
    "signature",
    "data",
    "id",
    "name",
    "input",
    "tool_use_id",
    "content",
    "source",
    "is_error",
)
BLOCK = st.fixed_dictionaries({"type": KINDS | JSON}, optional=dict.fromkeys(FIELDS, JSON))
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]) | JSON, "content": st.lists(BLOCK, max_size=3) | JSON}
)
WISHES = (
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "metadata",
    "stop_sequences",
    "model",
    "stream",
)


@settings(deadline=None)
@given(st.lists(TURN, min_size=1, max_size=3), st.fixed_dictionaries({}, optional=dict.fromkeys(WISHES, JSON)))
def test_whatever_comes_is_read_or_refused(messages: list[Any], wishes: dict[str, Any]) -> None:
    try:
        asked = read(messages=messages, **wishes)
    except ValueError:
        return
    assert asked.request.decode(asked.request.encode()) == asked.request


def chunk(**content: Any) -> Chunk:
    return Chunk(request_id="r", attempt_id="1.1", n=1, **content)


def reply(**message: Any) -> Reply:
    return Reply(
        request_id="r", client="c", request_hash="h", status="ok", message=ReplyMessage(**message),
        finish_reason="stop", model="m", timings=Timings(total_ms=1),
    )  # fmt: skip


def events(sent: bytes) -> list[dict[str, Any]]:
    lines = [part.split("\n") for part in sent.decode().split("\n\n") if part]
    told = [json.loads(data.removeprefix("data: ")) for _, data in lines]
    assert [name.removeprefix("event: ") for name, _ in lines] == [event["type"] for event in told]
    return told


def understood(sent: bytes) -> list[dict[str, Any]]:
    """The content as Anthropic's own client puts it together; each block stands for itself, from 0 on."""
    told = [event for event in events(sent) if event["type"] != "ping"]
    assert (told[0]["type"], told[-2]["type"], told[-1]["type"]) == ("message_start", "message_delta", "message_stop")
    opened: int | None = None
    blocks = 0
    for event in told[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert (opened, event["index"]) == (None, blocks)
                opened, blocks = blocks, blocks + 1
            case "content_block_delta":
                assert event["index"] == opened
            case "content_block_stop":
                assert event["index"] == opened
                opened = None
    assert opened is None
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in told:
        snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)  # type: ignore[arg-type]
    Message.model_validate(snapshot.model_dump())
    content: list[dict[str, Any]] = json.loads(json.dumps([block.model_dump() for block in snapshot.content]))
    return content


WORDS = st.text(min_size=1, max_size=4)
ARGUMENTS = st.dictionaries(WORDS, st.integers() | WORDS, max_size=2).map(lambda made: json.dumps(made))


@st.composite
def mixed_calls(draw: st.DrawFn) -> tuple[list[str], list[Chunk]]:
    """The arguments of several calls, and their pieces in any order that keeps those of each call."""
    calls = draw(st.lists(ARGUMENTS, max_size=3))
    pieces: list[list[Chunk]] = []
    for index, arguments in enumerate(calls):
        cut = draw(st.integers(0, len(arguments)))
        first = ToolCallChunk(index=index, arguments=arguments[:cut], id=f"call_{index}", name="tool")
        pieces.append([chunk(tool_call=first), chunk(tool_call=ToolCallChunk(index=index, arguments=arguments[cut:]))])
    order = draw(st.permutations([index for index in range(len(calls)) for _ in range(2)]))
    return calls, [pieces[index].pop(0) for index in order]


@settings(deadline=None)
@given(st.lists(WORDS), st.lists(WORDS), mixed_calls())
def test_a_stream_is_block_after_block_however_its_pieces_come(
    thoughts: list[str], words: list[str], calls: tuple[list[str], list[Chunk]]
) -> None:
    arguments, pieces = calls
    speech = Messages().speech(read(thinking={"type": "adaptive"}), "r")
    said = [*(chunk(reasoning=text) for text in thoughts), *(chunk(text=text) for text in words), *pieces]
    content = understood(b"".join(map(speech.piece, said)) + speech.end(reply(content="")))
    assert "".join(block.get("thinking", "") for block in content) == "".join(thoughts)
    assert "".join(block.get("text", "") for block in content) == "".join(words)
    called = {block["id"]: block["input"] for block in content if block["type"] == "tool_use"}
    assert called == {f"call_{index}": json.loads(made) for index, made in enumerate(arguments)}


BLOCKS = st.lists(
    st.builds(lambda text, n: {"type": "thinking", "thinking": text, "signature": f"서명{n}"}, WORDS, st.integers())
    | st.builds(lambda n: {"type": "redacted_thinking", "data": f"봉인{n}"}, st.integers()),
    max_size=3,
)


@settings(deadline=None)
@given(BLOCKS, WORDS, ARGUMENTS, st.integers(0, 12))
def test_however_much_was_told_the_rest_completes_it_and_it_comes_back_as_it_was(
    blocks: list[dict[str, Any]], text: str, arguments: str, heard: int
) -> None:
    call = {"id": "call_a", "type": "function", "function": {"name": "clock", "arguments": arguments}}
    reasoning = "".join(block.get("thinking", "") for block in blocks) or None
    whole = reply(content=text, reasoning=reasoning, thinking_blocks=blocks, tool_calls=(call,))
    pieces: list[Chunk] = []
    for block in blocks:
        pieces += [chunk(reasoning=letter) for letter in block.get("thinking", "")] + [chunk(thinking_block=block)]
    pieces += [chunk(text=letter) for letter in text]
    told, speech = Told(), Messages().speech(read(thinking={"type": "adaptive"}), "r")
    sent = b""
    for piece in pieces[:heard]:
        told.add(piece)
        sent += speech.piece(piece)
    rest = told.rest(whole)
    assert rest is not None
    content = understood(sent + b"".join(map(speech.piece, rest)) + speech.end(whole))
    asked = read(thinking={"type": "adaptive"})
    assert [
        {**made, **mine} for made, mine in zip(content, Messages().answer(asked, whole)["content"], strict=True)
    ] == (content), "a stream says what a plain answer says"
    [turn] = turns(None, [{"role": "assistant", "content": content}])
    assert (turn["content"], turn["thinking_blocks"] or []) == (text, blocks)
    assert json.loads(turn["tool_calls"][0]["function"]["arguments"]) == json.loads(arguments)


def test_thoughts_are_shown_to_whoever_asked_for_them_only() -> None:
    thoughtful = reply(content="답", reasoning="음", thinking_blocks=({"type": "tool_plan", "tool_plan": "음"},))
    shown = [{"type": "thinking", "thinking": "음", "signature": ""}, {"type": "text", "text": "답"}]
    for thinking, content in (({"type": "adaptive"}, shown), ({"type": "disabled"}, shown[1:]), (None, shown[1:])):
        asked = read(thinking=thinking)
        assert Messages().answer(asked, thoughtful)["content"] == content
        speech = Messages().speech(asked, "r")
        sent = b"".join(map(speech.piece, Told().rest(thoughtful) or ())) + speech.end(thoughtful)
        assert [block["type"] for block in understood(sent)] == [block["type"] for block in content]


def test_a_call_has_an_id_that_none_before_it_had() -> None:
    earlier = {"role": "assistant", "content": [{"type": "tool_use", "id": "call_0", "name": "clock", "input": {}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_0", "content": "아홉 시"}]}
    asked = read(messages=[ASKED, earlier, result])
    given = ("call_0", "functions.clock:1", "toolu_c")
    calls = tuple({"id": name, "function": {"name": "clock", "arguments": "{}"}} for name in given)
    whole = reply(content="", tool_calls=calls)
    speech = Messages().speech(asked, "r")
    sent = b"".join(map(speech.piece, Told().rest(whole) or ())) + speech.end(whole)
    for content in (understood(sent), Messages().answer(asked, whole)["content"]):
        assert [block["id"] for block in content] == ["toolu_r_0", "functions_clock_1", "toolu_c"]


@pytest.mark.parametrize("broken", ['{"command": "rm -r build', "[1]", '"ls"'])
def test_broken_arguments_are_no_half_of_a_call(broken: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "Bash", "arguments": broken}}
    [block] = Messages().answer(read(), reply(content="", tool_calls=(call,)))["content"]
    assert block["input"] == {"unreadable_arguments": broken}


def test_a_ping_is_an_event_of_the_dialect() -> None:
    assert events(MessageSpeech.ping) == [{"type": "ping"}]
