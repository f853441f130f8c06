"""OpenAI's Python SDK through the edge's responses: whole, streamed, tools, parsed output, images, thoughts, errors."""

from typing import Any

import openai
import pytest
from openai.types.responses import FunctionToolParam, Response, ResponseStreamEvent, response_stream_event
from pydantic import BaseModel, TypeAdapter

from tests.support.edge_openai import ASKED, WEATHER, in_turn, openai_on, saying, synchronously
from tests.support.faults import cut
from tests.support.inside import inside
from tests.support.openai_speech import TOOLS, streaming
from tests.support.sdk_types import check
from tests.support.upstreams import patient, upstreams

FUNCTIONS: list[FunctionToolParam] = [
    {"type": "function", "name": name, "parameters": {**WEATHER}, "strict": True} for name in ("weather", "clock")
]
EVENTS: TypeAdapter[Any] = TypeAdapter(response_stream_event.ResponseStreamEvent)
PIXEL = "data:image/png;base64,iVBORw0KGgo="


class Weather(BaseModel):
    도시: str
    기온: int


async def strictly(stream: openai.AsyncStream[ResponseStreamEvent]) -> list[ResponseStreamEvent]:
    """All events, in order, each what the vendor's own types say."""
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        check(EVENTS, event.model_dump(exclude_unset=True))
    return events


def names(events: list[ResponseStreamEvent]) -> list[str]:
    """The types in order, a run of the same once."""
    types = [event.type.removeprefix("response.") for event in events]
    return [each for n, each in enumerate(types) if n == 0 or types[n - 1] != each]


async def test_the_sdk_is_answered_synchronously_and_not() -> None:
    async with inside() as whole, openai_on(whole.url) as client:
        said = await synchronously(client, lambda same: same.responses.create(model="auto", input=ASKED))
        answer = await client.responses.create(
            model="fast", input=[{"role": "user", "content": ASKED}], instructions="짧게", metadata={"누구": "김"},
            temperature=0.5, max_output_tokens=99, reasoning={"effort": "low"}, store=True,
        )  # fmt: skip
        assert answer.output_text == said.output_text
        assert ASKED in answer.output_text
        assert (answer.status, answer.model, answer.instructions, answer.metadata) == (
            "completed", "echo", "짧게", {"누구": "김"}
        )  # fmt: skip
        assert (answer.temperature, answer.max_output_tokens, answer.tools) == (0.5, 99, [])
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        check(TypeAdapter(Response), answer.model_dump(exclude_unset=True))


async def test_a_stream_is_the_dialects_whole_sequence_and_ends_in_the_same_response() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = saying(
            {"reasoning_content": "흐린"}, {"reasoning_content": "가?"}, {"content": "맑"}, {"content": "음"}
        )
        events = await strictly(await client.responses.create(model="auto", input=ASKED, stream=True))
        assert names(events) == [
            "created", "in_progress",
            "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
            "content_part.done", "output_item.done",
            "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
            "content_part.done", "output_item.done",
            "completed",
        ]  # fmt: skip
        assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["맑", "음"]
        last = events[-1]
        assert last.type == "response.completed"
        plain = await client.responses.create(model="auto", input=ASKED)

        def told(response: Response) -> Any:
            rid = response.id.removeprefix("resp_")
            return response.model_dump_json(exclude={"created_at", "completed_at"}).replace(rid, "")

        assert told(plain) == told(last.response)
        assert [item.type for item in plain.output] == ["reasoning", "message"]


async def test_tools_called_side_by_side_go_out_and_their_results_come_back() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = in_turn(streaming(TOOLS, 9), saying({"content": "서울은 9시, 맑습니다"}), streaming(TOOLS))
        asked: list[Any] = [{"role": "user", "content": ASKED}]
        async with client.responses.stream(
            model="auto", input=asked, tools=FUNCTIONS, tool_choice="required", parallel_tool_calls=True
        ) as stream:
            done = [event async for event in stream if event.type == "response.function_call_arguments.done"]
            said = await stream.get_final_response()
        assert [event.arguments for event in done] == ['{"도시":"서울"}', '{"zone":9}']
        calls = [item for item in said.output if item.type == "function_call"]
        assert [(call.call_id, call.name, call.arguments) for call in calls] == [
            ("a", "weather", '{"도시":"서울"}'), ("b", "clock", '{"zone":9}')
        ]  # fmt: skip
        asked += [item.model_dump(exclude_none=True) for item in said.output]
        asked += [{"type": "function_call_output", "call_id": call.call_id, "output": "맑음"} for call in calls]
        answer = await client.responses.create(model="auto", input=asked, tools=FUNCTIONS)
        assert answer.output_text == "서울은 9시, 맑습니다"
        first, second = (exchange.json() for exchange in up.primary.exchanges)
        assert (first["tools"][0]["function"]["name"], first["tools"][0]["function"]["strict"]) == ("weather", True)
        assert (first["tool_choice"], first["parallel_tool_calls"]) == ("required", True)
        user, assistant, *results = second["messages"]
        assert user["content"] == ASKED
        assert [call["id"] for call in assistant["tool_calls"]] == ["a", "b"]
        assert [(turn["role"], turn["tool_call_id"], turn["content"]) for turn in results] == [
            ("tool", "a", "맑음"), ("tool", "b", "맑음")
        ]  # fmt: skip
        whole = await client.responses.create(
            model="auto", input=ASKED, tools=FUNCTIONS, tool_choice={
                "type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]
            },
        )  # fmt: skip
        assert [item.type for item in whole.output] == ["function_call", "function_call"]
        assert [tool["function"]["name"] for tool in up.primary.exchanges[2].json()["tools"]] == ["weather"]


async def test_structured_output_is_parsed_by_the_sdk() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = saying({"content": '{"도시": "서울", '}, {"content": '"기온": 21}'})
        parsed = await client.responses.parse(model="auto", input=ASKED, text_format=Weather)
        assert parsed.output_parsed == Weather(도시="서울", 기온=21)
        heard = up.primary.exchanges[0].json()["response_format"]
        assert (heard["type"], heard["json_schema"]["name"], heard["json_schema"]["strict"]) == (
            "json_schema", "Weather", True
        )  # fmt: skip


async def test_images_and_thoughts_go_to_the_provider() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = in_turn(
            saying({"reasoning_content": "고양이?"}, {"content": "고양이"}), saying({"content": "네"})
        )
        asked: list[Any] = [
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "무엇이 보이나요?"},
                    {"type": "input_image", "image_url": PIXEL, "detail": "low"},
                ],
            }
        ]
        said = await client.responses.create(model="auto", input=asked)
        again: list[Any] = [*asked, *said.output, {"role": "user", "content": "정말?"}]
        await client.responses.create(model="auto", input=again)
        first, second = (exchange.json()["messages"] for exchange in up.primary.exchanges)
        assert first[0]["content"][1] == {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}
        assert [turn["role"] for turn in second] == ["user", "assistant", "user"]
        assert (second[1]["content"], second[1]["reasoning_content"]) == ("고양이", "고양이?")


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_stopped_early_is_incomplete_and_says_why(finish: str, reason: str) -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = saying({"content": "반쯤"}, finish=finish)
        answer = await client.responses.create(model="auto", input=ASKED)
        events = await strictly(await client.responses.create(model="auto", input=ASKED, stream=True))
        last = events[-1]
        assert last.type == "response.incomplete"
        for response in (answer, last.response):
            assert response.incomplete_details is not None
            assert (response.status, response.incomplete_details.reason) == ("incomplete", reason)
            assert response.output_text == "반쯤"


async def test_a_stream_that_breaks_off_ends_with_its_failure() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = cut("fin")
        events = await strictly(await client.responses.create(model="auto", input=ASKED, stream=True))
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert (last.response.status, last.response.error.code) == ("failed", "server_error")
        assert "broke off" in last.response.error.message
        assert "response.output_item.done" not in {event.type for event in events}


REFUSED: dict[str, dict[str, Any]] = {
    "previous_response_id": {"previous_response_id": "resp_1"},
    "conversation": {"conversation": "conv_1"},
    "background": {"background": True},
    "tools[0].type": {"tools": [{"type": "web_search"}]},
    "tools[1].name": {"tools": [*FUNCTIONS[:1], {"type": "function"}]},
    "tool_choice": {"tool_choice": {"type": "file_search"}},
    "max_output_tokens": {"max_output_tokens": "99"},
    "temperature": {"temperature": True},
    "text.format.type": {"text": {"format": {"type": "grammar"}}},
    "reasoning.effort": {"reasoning": {"effort": "아주"}},
    "include": {"include": ["message.output_text.logprobs"]},
    "input": {"input": []},
    "input[0]": {"input": [{"type": "item_reference", "id": "msg_1"}]},
    "input[0].role": {"input": [{"content": "누구?"}]},
    "input[0].content": {"input": [{"role": "user", "content": 7}]},
    "input[1].type": {"input": [{"role": "user", "content": "안녕"}, {"type": "computer_call_output"}]},
    "input[0].content[0].type": {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
    "input[0].content[0].image_url": {
        "input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]
    },
    "input[0].encrypted_content": {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}]},
}


async def test_what_cannot_be_had_is_refused_by_its_name() -> None:
    async with inside(nodes=False, routers=0) as whole, openai_on(whole.url) as client:
        create: Any = client.responses.create
        for field, asked in REFUSED.items():
            with pytest.raises(openai.BadRequestError) as caught:
                await create(**{"model": "auto", "input": ASKED, **asked})
            assert (caught.value.param, caught.value.code) == (field, "bad_request")
