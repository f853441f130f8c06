"""What of an answer went out, compared with the whole: what is left of it, or that it is another one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.edge.told import Told, has_content
from schemas import Chunk, Reply, ReplyMessage, Timings
from schemas.chunk import ToolCallChunk
from schemas.work import AttemptRecord

CALLS = ({"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"도시":"서울"}'}},
         {"id": "b", "type": "function", "function": {"name": "clock", "arguments": "{}"}})  # fmt: skip


def chunk(attempt_id: str = "1.1", **content: Any) -> Chunk:
    return Chunk(request_id="r1", attempt_id=attempt_id, n=0, **content)


def call(index: int, arguments: str = "", id: str | None = None, name: str | None = None) -> Chunk:  # noqa: A002
    return chunk(tool_call=ToolCallChunk(index=index, arguments=arguments, id=id, name=name))


def reply(attempt_id: str = "1.1", **message: Any) -> Reply:
    attempt = AttemptRecord(attempt_id=attempt_id, node="n", model="m", provider="p")
    return Reply(
        request_id="r1", client="c", request_hash="", status="ok", timings=Timings(total_ms=1), attempts=(attempt,),
        message=ReplyMessage(**{"content": "", **message}),
    )  # fmt: skip


def told(*chunks: Chunk) -> Told:
    said = Told()
    for each in chunks:
        assert said.continues(each)
        said.add(each)
    return said


Left = tuple[str, str | None, tuple[int, str, str | None, str | None] | None]


def rest(said: Told, whole: Reply) -> list[Left] | None:
    pieces = said.rest(whole)
    if pieces is None:
        return None
    assert all(map(has_content, pieces))
    return [(each.text, each.reasoning, _call(each.tool_call)) for each in pieces]


def _call(piece: ToolCallChunk | None) -> tuple[int, str, str | None, str | None] | None:
    return None if piece is None else (piece.index, piece.arguments, piece.id, piece.name)


def test_of_an_answer_nobody_heard_all_is_left() -> None:
    whole = reply(content="맑음", reasoning="흐린가?", tool_calls=CALLS)
    assert rest(Told(), whole) == [
        ("", "흐린가?", None),
        ("맑음", None, None),
        ("", None, (0, '{"도시":"서울"}', "a", "weather")),
        ("", None, (1, "{}", "b", "clock")),
    ]
    assert rest(Told(), reply()) == []


def test_what_went_out_is_not_said_again() -> None:
    whole = reply(content="맑음", reasoning="흐린가?", tool_calls=CALLS)
    said = told(
        chunk(reasoning="흐린"),
        chunk(text="맑"),
        call(0, "", "a", "weather"),
        call(0, '{"도시":'),
        call(1, "", "b", "clock"),
    )
    assert rest(said, whole) == [
        ("", "가?", None),
        ("음", None, None),
        ("", None, (0, '"서울"}', None, None)),
        ("", None, (1, "{}", None, None)),
    ]


def test_a_call_whose_name_never_went_out_is_named_at_the_end() -> None:
    said = told(call(0, '{"도시":'))
    assert rest(said, reply(tool_calls=CALLS[:1])) == [("", None, (0, '"서울"}', "a", "weather"))]


@pytest.mark.parametrize(
    "said",
    [
        chunk(text="흐림"),
        chunk(text="맑음 "),
        chunk(reasoning="그"),
        call(0, "[", "a", "weather"),
        call(0, "", "a", "clock"),
        call(0, "", "z", "weather"),
        call(2, "", "c", "weather"),
    ],
    ids=["text", "more text", "reasoning", "arguments", "name", "id", "a call too many"],
)
def test_what_is_not_the_beginning_of_the_answer_has_no_rest(said: Chunk) -> None:
    assert rest(told(said), reply(content="맑음", tool_calls=CALLS)) is None


def test_another_attempts_answer_does_not_end_this_one_though_it_begins_alike() -> None:
    said = told(chunk("1.1", text="맑"))
    assert not said.continues(chunk("2.1"))
    assert not said.continues(chunk("1.2", text="음"))
    assert rest(said, reply("2.1", content="맑음")) is None
    assert rest(told(), reply("2.1", content="맑음")) == [("맑음", None, None)]


@given(st.text(min_size=1), st.data())
def test_pieces_and_rest_are_always_the_whole(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    left = told(*(chunk(text=piece) for piece in pieces)).rest(reply(content=text))
    assert left is not None
    assert "".join(pieces) + "".join(piece.text for piece in left) == text
