"""OpenAI's Python SDK through the edge's chat completions: whole, streamed, tools, parsed output, images, errors."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.e2e.test_edge_anthropic import speaking_anthropic
from tests.support import anthropic_speech
from tests.support.edge_openai import ASKED, WEATHER, in_turn, openai_on, saying, synchronously
from tests.support.faults import OOPS, cut
from tests.support.inside import inside
from tests.support.keyed import key_of
from tests.support.openai_speech import TOOLS, error, refusing, streaming
from tests.support.upstreams import alone, patient, upstreams

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": ASKED}]
TOLD = {"metadata": {"loopback": {"text": "안개 낀 항구", "pieces": 7}}}
FUNCTIONS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": name, "parameters": WEATHER}} for name in ("weather", "clock")
]
PIXEL = "data:image/png;base64,iVBORw0KGgo="


class Weather(BaseModel):
    도시: str
    기온: int


async def test_the_sdk_is_answered_synchronously_and_not() -> None:
    def work(client: openai.OpenAI) -> tuple[str | None, str]:
        whole = client.chat.completions.create(model="auto", messages=MESSAGES)
        pieces = client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
        return whole.choices[0].message.content, "".join(chunk.choices[0].delta.content or "" for chunk in pieces)

    async with inside() as whole, openai_on(whole.url) as client:
        said, streamed = await synchronously(client, work)
        answer = await client.chat.completions.create(model="fast", messages=MESSAGES, n=1, user="김", store=True)
        assert answer.choices[0].message.content == said == streamed
        assert said is not None
        assert ASKED in said
        assert (answer.model, answer.choices[0].finish_reason) == ("echo", "stop")
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_stream_counts_at_its_end_when_asked_to() -> None:
    async with inside() as whole, openai_on(whole.url) as client:
        stream = await client.chat.completions.create(
            model="auto", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, extra_body=TOLD
        )
        *chunks, last = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "안개 낀 항구"
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 7 + ["stop"]
        assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks)
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.completion_tokens > 0
        assert len({(chunk.id, chunk.created, chunk.model) for chunk in (*chunks, last)}) == 1
        plain = await client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
        assert not any(["usage" in chunk.model_fields_set async for chunk in plain])


async def test_the_routers_own_fields_go_in_the_body_or_in_headers() -> None:
    async with inside() as whole, openai_on(whole.url) as client:
        create = client.chat.completions.with_raw_response.create
        body = await create(model="auto", messages=MESSAGES, extra_body={"task": "code", "deadline_ms": 9_000})
        header = await create(model="auto", messages=MESSAGES, extra_headers={"x-llm-task": "code"})
        for raw in (body, header):
            assert "task:code" in raw.headers["x-llm-decision"]
            assert raw.parse().id == f"chatcmpl-{raw.headers['x-llm-request-id']}"
        with pytest.raises(openai.BadRequestError) as caught:
            await create(model="auto", messages=MESSAGES, extra_headers={"x-llm-deadline-ms": "soon"})
        assert caught.value.param == "deadline_ms"


async def test_tools_called_side_by_side_go_out_and_their_results_come_back() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = in_turn(streaming(TOOLS, 9), saying({"content": "서울은 9시, 맑습니다"}))
        async with client.chat.completions.stream(
            model="auto", messages=MESSAGES, tools=FUNCTIONS, tool_choice="required", parallel_tool_calls=True
        ) as stream:
            deltas = [each async for each in stream if each.type == "tool_calls.function.arguments.delta"]
            said = (await stream.get_final_completion()).choices[0]
        assert {(each.index, each.name) for each in deltas} == {(0, "weather"), (1, "clock")}
        assert said.finish_reason == "tool_calls"
        assert said.message.content is None
        calls = [(call.id, call.function.name, call.function.arguments) for call in said.message.tool_calls or ()]
        assert calls == [("a", "weather", '{"도시":"서울"}'), ("b", "clock", '{"zone":9}')]
        again: list[Any] = [
            *MESSAGES,
            said.message,
            {"role": "tool", "tool_call_id": "a", "content": "맑음"},
            {"role": "tool", "tool_call_id": "b", "content": "9시"},
        ]
        answer = await client.chat.completions.create(model="auto", messages=again, tools=FUNCTIONS)
        assert answer.choices[0].message.content == "서울은 9시, 맑습니다"
        first, second = (exchange.json() for exchange in up.primary.exchanges)
        assert (first["tools"], first["tool_choice"], first["parallel_tool_calls"]) == (FUNCTIONS, "required", True)
        assert [call["function"]["arguments"] for call in second["messages"][1]["tool_calls"]] == [
            '{"도시":"서울"}', '{"zone":9}'
        ]  # fmt: skip
        assert [turn["tool_call_id"] for turn in second["messages"][2:]] == ["a", "b"]


async def test_of_allowed_tools_the_provider_hears_of_no_other() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        await client.chat.completions.create(
            model="auto", messages=MESSAGES, tools=FUNCTIONS, tool_choice={
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}]},
            },
        )  # fmt: skip
        heard = up.primary.exchanges[0].json()
        assert (heard["tools"], heard["tool_choice"]) == (FUNCTIONS[1:], "required")


async def test_structured_output_is_parsed_by_the_sdk() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = in_turn(
            saying({"content": '{"도시": "서울", '}, {"content": '"기온": 21}'}),
            saying({"content": '{"도'}, finish="length"),
        )
        parsed = await client.chat.completions.parse(model="auto", messages=MESSAGES, response_format=Weather)
        assert parsed.choices[0].message.parsed == Weather(도시="서울", 기온=21)
        heard = up.primary.exchanges[0].json()["response_format"]["json_schema"]
        assert (heard["strict"], heard["schema"]["required"]) == (True, ["도시", "기온"])
        with pytest.raises(openai.LengthFinishReasonError):
            await client.chat.completions.parse(model="auto", messages=MESSAGES, response_format=Weather)


async def test_images_and_what_a_model_thought_go_both_ways() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = in_turn(
            saying({"reasoning_content": "흐린가?"}, {"content": "맑"}, {"content": "음"}), saying({"content": "네"})
        )
        parts: list[Any] = [
            {"type": "text", "text": "무엇이 보이나요?"},
            {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/항구.jpg"}},
        ]
        asked: list[Any] = [{"role": "user", "content": parts}]
        said = (await client.chat.completions.create(model="auto", messages=asked)).choices[0].message
        assert (said.content, said.model_extra) == ("맑음", {"reasoning_content": "흐린가?"})
        turns = [*asked, said.model_dump(), {"role": "user", "content": "정말?"}]
        await client.chat.completions.create(model="auto", messages=turns)
        first, second = (exchange.json()["messages"] for exchange in up.primary.exchanges)
        assert first[0]["content"] == parts
        assert (second[1]["content"], second[1]["reasoning_content"]) == ("맑음", "흐린가?")


async def test_an_answer_that_was_filtered_says_so() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = saying({"content": "말할 수"}, finish="content_filter")
        answer = await client.chat.completions.create(model="auto", messages=MESSAGES)
        stream = await client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
        *_, last = [chunk.choices[0].finish_reason async for chunk in stream]
        assert answer.choices[0].finish_reason == last == "content_filter"


async def test_a_stream_that_breaks_off_raises_and_is_never_taken_for_whole() -> None:
    async with upstreams(patient) as up, openai_on(up.bus.url) as client:
        up.primary.script = cut("fin")
        heard: list[ChatCompletionChunk] = []
        stream = await client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)

        async def listen() -> None:
            async for chunk in stream:
                heard.append(chunk)

        with pytest.raises(openai.APIError, match="broke off") as caught:
            await listen()
        assert len(heard) == 40
        assert all(chunk.choices[0].finish_reason is None for chunk in heard)
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["llm"]["type"] == "upstream_interrupted"
        # What waits for a whole good answer may be served by another, unseen.
        buffered = await client.chat.completions.create(
            model="auto", messages=MESSAGES, stream=True, extra_body={"buffered": True}
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in buffered]) == "second"


async def test_errors_are_of_the_sdks_own_classes_and_name_request_and_field() -> None:
    async with inside() as whole, openai_on(whole.url) as client:
        create: Any = client.chat.completions.create
        with pytest.raises(openai.NotFoundError) as unknown:
            await create(model="nobody", messages=MESSAGES)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        assert isinstance(unknown.value.body, dict)
        rid = unknown.value.response.headers["x-llm-request-id"]
        assert unknown.value.body["llm"]["request_id"] == rid
        for wrong, field in REFUSED.items():
            with pytest.raises(openai.BadRequestError) as bad:
                await create(**{"model": "auto", "messages": MESSAGES, **field})
            assert (bad.value.code, bad.value.param, bad.value.type) == ("bad_request", wrong, "invalid_request_error")


async def test_who_may_not_hears_so_in_the_sdks_classes() -> None:
    async with inside() as whole, openai_on(whole.url, keys=True) as nobody:
        with pytest.raises(openai.AuthenticationError):
            await nobody.chat.completions.create(model="auto", messages=MESSAGES)
        with pytest.raises(openai.AuthenticationError):
            await nobody.models.list()
        key = await key_of(whole.bus, "npc-ai", requests_per_minute=1, capabilities=["chat"])
        client = nobody.with_options(api_key=key)
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="code", messages=MESSAGES)

        async def too_often() -> None:
            for _ in range(3):  # a new minute may begin once
                await client.chat.completions.create(model="auto", messages=MESSAGES)

        with pytest.raises(openai.RateLimitError) as caught:
            await too_often()
        assert int(caught.value.response.headers["retry-after"]) >= 1


REFUSED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": "0.5"},
    "max_tokens": {"max_tokens": 2.5},
    "max_completion_tokens": {"max_completion_tokens": 0},
    "seed": {"seed": "행운"},
    "n": {"n": 2},
    "logprobs": {"logprobs": True},
    "functions": {"functions": [{"name": "f"}]},
    "stop": {"stop": 7},
    "tools[0].type": {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
    "tool_choice": {"tool_choice": "anything"},
    "response_format.type": {"response_format": {"type": "xml"}},
    "messages[0].content[0].type": {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
    "messages": {"messages": [{"role": "user", "content": ""}]},
    "messages[0].role": {"messages": [{"role": "사람", "content": "안녕"}]},
    "messages[1].tool_call_id": {"messages": [*MESSAGES, {"role": "tool", "content": "맑음"}]},
}


async def test_an_upstreams_refusal_keeps_its_words_and_its_class() -> None:
    async with upstreams(alone) as up, openai_on(up.bus.url) as client:
        up.primary.script = in_turn(
            refusing(400, error("금지된 요청입니다", code="content_policy_violation", param="messages")),
            refusing(429, error("잠시 후 다시")),
        )
        with pytest.raises(openai.BadRequestError, match="금지된 요청입니다") as refused:
            await client.chat.completions.create(model="auto", messages=MESSAGES)
        assert (refused.value.code, refused.value.param) == ("content_policy_violation", "messages")
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="auto", messages=MESSAGES)


async def test_what_no_backend_can_do_and_what_is_too_long_for_it_is_the_callers_fault() -> None:
    async with upstreams(speaking_anthropic) as up, openai_on(up.bus.url) as client:
        with pytest.raises(openai.BadRequestError, match="Anthropic takes no seed") as caught:
            await client.chat.completions.create(model="auto", messages=MESSAGES, seed=7)
        assert (caught.value.code, up.calls) == ("bad_request", (0, 0, 0))
        too_long = anthropic_speech.error("invalid_request_error", "prompt is too long: 210000 tokens > 200000")
        up.primary.script = refusing(400, too_long)
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=r"prompt is too long: .*210000 tokens") as caught:
                await client.chat.completions.create(model="auto", messages=MESSAGES, stream=stream)
            assert caught.value.code == "context_length_exceeded"


async def test_the_sdk_repeats_what_may_succeed_and_nothing_else() -> None:
    async with upstreams(alone) as up, openai_on(up.bus.url, max_retries=2) as client:
        up.primary.script = in_turn(
            refusing(429, error("slow down")), saying({"content": "네"}), refusing(401, error("who are you"))
        )
        answer = await client.chat.completions.create(model="auto", messages=MESSAGES)
        assert answer.choices[0].message.content == "네"
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="auto", messages=MESSAGES)
        assert (caught.value.status_code, caught.value.response.headers["x-should-retry"]) == (502, "false")
        assert up.calls == (3, 0, 0)


async def test_when_all_have_failed_the_sdk_hears_each_reason() -> None:
    async with upstreams(alone) as up, openai_on(up.bus.url) as client:
        up.primary.script = OOPS
        with pytest.raises(openai.InternalServerError, match="oops"):
            await client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
