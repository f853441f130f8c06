"""Anthropic's own SDK on the bus: whole and streamed, tools, thinking, images, schemas, whatever speaks behind it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
from pydantic import BaseModel

from tests.support import anthropic_speech, openai_speech
from tests.support.edge import edge_on
from tests.support.inside import inside
from tests.support.openai_speech import streaming
from tests.support.upstreams import Policy, Upstreams, alone, answering, patient, upstreams

ASKED: list[Any] = [{"role": "user", "content": "항구를 묘사해 줘"}]
TOOLS: list[Any] = [
    {"name": name, "description": "알려 준다", "input_schema": {"type": "object", "properties": {}}}
    for name in ("weather", "clock", "now")
]
THINKING: Any = {"type": "adaptive"}
PNG: Any = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


def speaking_anthropic(policy: Policy) -> None:
    """A change for `upstreams`: the primary speaks Anthropic, and nobody stands behind it."""
    alone(policy)
    patient(policy)
    policy["providers"]["primary"]["dialect"] = "anthropic"


def client(base_url: object) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=str(base_url), api_key="none", max_retries=0)


@asynccontextmanager
async def behind(change: Any, body: bytes) -> AsyncIterator[tuple[anthropic.AsyncAnthropic, Upstreams]]:
    """The SDK, and behind the bus a primary that answers with this body."""
    async with upstreams(change) as up, edge_on(up.bus.url) as http, client(http.base_url) as sdk:
        up.primary.script = streaming(body)
        yield sdk, up


async def whole_and_streamed(sdk: anthropic.AsyncAnthropic, **asked: Any) -> anthropic.types.Message:
    """The answer, which is the same both ways."""
    asked = {"model": "auto", "max_tokens": 4_000, "messages": ASKED, **asked}
    whole = await sdk.messages.create(**asked)
    async with sdk.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    drop: Any = {"id", "content"}
    assert streamed.model_dump(exclude=drop) == whole.model_dump(exclude=drop)
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert isinstance(whole, anthropic.types.Message)
    return whole


async def test_the_sdk_reads_an_answer_whole_and_in_pieces() -> None:
    told = {"metadata": {"loopback": {"text": "안개 낀 항구", "pieces": 7}}}
    async with inside() as bus, edge_on(bus.url) as http, client(http.base_url) as sdk:
        answer = await whole_and_streamed(sdk, extra_body=told)
        assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "안개 낀 항구"}]
        assert (answer.model, answer.stop_reason, answer.usage.output_tokens) == ("echo", "end_turn", 2)
        asked: Any = {"model": "chat", "max_tokens": 9, "messages": ASKED, "extra_body": told}
        raw = [event.type async for event in await sdk.messages.create(**asked, stream=True)]
        assert raw == [
            "message_start",
            "content_block_start",
            *["content_block_delta"] * 7,
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]


def test_the_sdk_that_blocks_reads_the_same() -> None:
    def ask(base_url: str) -> tuple[str, str]:
        with anthropic.Anthropic(base_url=base_url, api_key="none", max_retries=0) as sdk:
            asked: Any = {"model": "auto", "max_tokens": 99, "messages": ASKED}
            with sdk.messages.stream(**asked) as stream:
                streamed = "".join(stream.text_stream)
            [block] = sdk.messages.create(**asked).content
            assert block.type == "text"
            return block.text, streamed

    async def served() -> tuple[str, str]:
        async with inside() as bus, edge_on(bus.url) as http:
            return await asyncio.to_thread(ask, str(http.base_url))

    whole, streamed = asyncio.run(served())
    assert "항구를 묘사해 줘" in whole
    assert whole == streamed


async def test_thinking_comes_signed_and_goes_back_as_it_came() -> None:
    async with behind(speaking_anthropic, anthropic_speech.RECORDED) as (sdk, up):
        answer = await whole_and_streamed(sdk, thinking=THINKING)
        content = [block.to_dict() for block in answer.content]
        thought = {"type": "thinking", "thinking": anthropic_speech.THOUGHT, "signature": anthropic_speech.SIGNATURE}
        sealed = {"type": "redacted_thinking", "data": anthropic_speech.SEALED}
        assert content == [thought, sealed, {"type": "text", "text": "안녕하세요 🙂 hello"}]
        counts = answer.usage
        assert (counts.input_tokens, counts.cache_read_input_tokens, counts.cache_creation_input_tokens) == (20, 100, 7)
        assert counts.output_tokens_details is not None
        assert (counts.output_tokens, counts.output_tokens_details.thinking_tokens) == (15, 6)
        again = [*ASKED, {"role": "assistant", "content": answer.content}, *ASKED]
        await sdk.messages.create(model="auto", max_tokens=4_000, messages=again, thinking=THINKING)
        sent = up.primary.exchanges[-1].json()
        assert sent["thinking"] == {"type": "adaptive"}
        assert sent["messages"][1] == {"role": "assistant", "content": content}


async def test_thinking_that_may_be_asks_nothing_of_a_model_that_cannot() -> None:
    async with behind(alone, openai_speech.RECORDED) as (sdk, up):
        await whole_and_streamed(sdk, thinking=THINKING, extra_body={"output_config": {"effort": "high"}})
        assert "reasoning_effort" not in up.primary.exchanges[-1].json()


async def test_tools_are_called_and_answered_whatever_speaks_behind() -> None:
    for change, body, text in (
        (speaking_anthropic, anthropic_speech.TOOLS, openai_speech.TEXT),
        (alone, openai_speech.TOOLS, None),
    ):
        async with behind(change, body) as (sdk, up):
            answer = await whole_and_streamed(sdk, tools=TOOLS, tool_choice={"type": "any"})
            assert answer.stop_reason == "tool_use"
            assert [block.text for block in answer.content if block.type == "text"] == ([text] if text else [])
            calls = [block for block in answer.content if block.type == "tool_use"]
            assert [(call.name, call.input) for call in calls][:2] == [
                ("weather", {"도시": "서울"}),
                ("clock", {"zone": 9}),
            ]
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": "맑음", "is_error": call.name == "clock"}
                for call in calls
            ]
            again = [*ASKED, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
            await sdk.messages.create(model="auto", max_tokens=99, messages=again, tools=TOOLS)
            sent = json.dumps(up.primary.exchanges[-1].json()["messages"][-len(calls) :], ensure_ascii=False)
            assert all(call.id in sent for call in calls)
            assert sent.count("맑음") == len(calls)
            assert "Error: 맑음" in sent


async def test_a_stop_sequence_is_named_where_the_provider_names_it() -> None:
    asked: Any = {"stop_sequences": ["끝", "END"]}
    said = anthropic_speech.stop("stop_sequence", stop_sequence="끝")
    named = anthropic_speech.PIECES + anthropic_speech.closed(0) + said + anthropic_speech.END
    vllm = openai_speech.RECORDED.replace(b'"finish_reason": "stop"', b'"finish_reason": "stop", "stop_reason": "END"')
    for change, body, told in (
        (speaking_anthropic, named, ("stop_sequence", "끝")),
        (alone, vllm, ("stop_sequence", "END")),
        (alone, openai_speech.RECORDED, ("end_turn", None)),
    ):
        async with behind(change, body) as (sdk, up):
            answer = await whole_and_streamed(sdk, **asked)
            assert (answer.stop_reason, answer.stop_sequence) == told
            sent = up.primary.exchanges[-1].json()
            assert sent.get("stop_sequences", sent.get("stop")) == ["끝", "END"]


async def test_images_and_marks_for_the_cache_reach_whoever_knows_them() -> None:
    marked: Any = {"type": "text", "text": "이게 뭐죠?", "cache_control": {"type": "ephemeral"}}
    shown = [
        {"type": "image", "source": PNG},
        {"type": "image", "source": {"type": "url", "url": "https://a.example/b"}},
    ]
    asked: Any = {"max_tokens": 99, "messages": [{"role": "user", "content": [*shown, marked]}]}
    async with behind(speaking_anthropic, anthropic_speech.SPOKEN) as (sdk, up):
        await sdk.messages.create(model="auto", system=[marked], **asked)
        sent = up.primary.exchanges[-1].json()
        assert sent["messages"][0]["content"] == [*shown, marked]
        assert sent["system"] == [marked]
    async with behind(alone, openai_speech.RECORDED) as (sdk, up):
        await sdk.messages.create(model="auto", system=[marked], **asked)
        system, user = up.primary.exchanges[-1].json()["messages"]
        plain = {"type": "text", "text": "이게 뭐죠?"}
        assert system["content"] == [plain]
        urls = ["data:image/png;base64,iVBORw0KGgo=", "https://a.example/b"]
        assert user["content"] == [*({"type": "image_url", "image_url": {"url": url}} for url in urls), plain]


class Port(BaseModel):
    name: str
    berths: int


async def test_a_wanted_schema_is_obeyed() -> None:
    async with behind(alone, b"") as (sdk, up):
        up.primary.script = answering('{"name": "부산항", "berths": 43}')
        parsed = await sdk.messages.parse(model="auto", max_tokens=99, messages=ASKED, output_format=Port)
        assert parsed.parsed_output == Port(name="부산항", berths=43)
        wish = up.primary.exchanges[-1].json()["response_format"]
        assert wish["type"] == "json_schema"
        assert wish["json_schema"]["schema"]["required"] == ["name", "berths"]


async def test_tokens_are_counted_and_somebody_is_at_home() -> None:
    async with inside(nodes=False) as bus, edge_on(bus.url) as http, client(http.base_url) as sdk:
        few = await sdk.messages.count_tokens(model="auto", messages=ASKED)
        image: Any = [{"role": "user", "content": [{"type": "image", "source": PNG}]}]
        more = await sdk.messages.count_tokens(model="auto", messages=[*ASKED, *image], tools=TOOLS, system="짧게")
        assert 0 < few.input_tokens < more.input_tokens - 1_600
        assert (await http.head("/")).status_code == 200
        assert "/docs" in (await http.get("/")).text
