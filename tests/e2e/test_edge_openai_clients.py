"""Other clients of OpenAI's dialect at the edge: its own in JavaScript, LangChain, curl."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient
from pydantic import BaseModel

from ops.edge import edge
from tests.support.edge import edge_on
from tests.support.edge_openai import ASKED, in_turn, saying
from tests.support.faults import TOKENS, Held
from tests.support.inside import inside
from tests.support.npm import assert_lock_names_no_registry, command, installed
from tests.support.openai_speech import tool as calling
from tests.support.upstreams import patient, upstreams

SCRIPTS = Path(__file__).with_name("js_openai")
CALL = saying({"tool_calls": [calling(0, '{"city":"서울"}', id="a", name="weather")]}, finish="tool_calls")


class Weather(BaseModel):
    """날씨."""

    도시: str
    기온: int


@tool
def weather(city: str) -> str:
    """The weather there."""
    return f"{city}: 맑음"


@asynccontextmanager
async def langchain(url: str, **options: Any) -> AsyncIterator[ChatOpenAI]:
    """A model of LangChain's at an edge of its own on the bus at `url`."""
    async with edge(url, port=0) as address, DefaultAsyncHttpxClient(trust_env=False) as http:
        with DefaultHttpxClient(trust_env=False) as same:
            base: dict[str, Any] = {"model": "auto", "base_url": f"{address}/v1", "api_key": "none", "max_retries": 0}
            yield ChatOpenAI(**base, http_client=same, http_async_client=http, **options)


def test_the_lock_names_no_registry() -> None:
    assert_lock_names_no_registry(SCRIPTS)


@pytest.mark.node
async def test_openais_client_in_javascript_reads_every_answer(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    scripts = installed(pytestconfig.cache, SCRIPTS)
    async with inside() as whole, edge_on(whole.url) as http:
        told = json.loads(await command(scripts, "node", "ask.mjs", f"{http.base_url}/v1", ASKED))
    assert ASKED in told["whole"]
    assert {told[name] for name in ("streamed", "response", "final")} == {told["whole"]}
    assert told["last"] == "response.completed"
    assert {"auto", "echo", "fast"} <= set(told["ids"])
    assert told["refused"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
    async with upstreams(patient) as up, edge_on(up.bus.url) as http:
        up.primary.script = in_turn(CALL, saying({"content": "서울은 맑음"}))
        told = json.loads(await command(scripts, "node", "tools.mjs", f"{http.base_url}/v1", ASKED))
    assert told == {"said": "서울은 맑음", "ran": [{"city": "서울"}]}


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
async def test_langchain_invokes_and_streams(responses: bool) -> None:
    async with inside() as whole, langchain(whole.url, use_responses_api=responses, stream_usage=True) as model:
        answer = await model.ainvoke(ASKED)
        assert ASKED in answer.text
        assert (await asyncio.to_thread(model.invoke, ASKED)).text == answer.text
        first, *more = [piece async for piece in model.astream(ASKED)]
        streamed = sum(more, first)
        assert (streamed.text, streamed.usage_metadata) == (answer.text, answer.usage_metadata)


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
async def test_langchain_calls_tools_and_has_structured_output(responses: bool) -> None:
    async with upstreams(patient) as up, langchain(up.bus.url, use_responses_api=responses) as model:
        up.primary.script = in_turn(
            CALL, saying({"content": "서울은 맑음"}), saying({"content": '{"도시": "서울", "기온": 21}'})
        )
        asked = HumanMessage(ASKED)
        called = await model.bind_tools([weather]).ainvoke([asked])
        assert isinstance(called, AIMessage)
        results = [
            ToolMessage(weather.invoke(call["args"]), tool_call_id=str(call["id"])) for call in called.tool_calls
        ]
        assert [result.content for result in results] == ["서울: 맑음"]
        answer = await model.bind_tools([weather]).ainvoke([asked, called, *results])
        assert answer.text == "서울은 맑음"
        heard = up.primary.exchanges[1].json()["messages"]
        assert [turn["role"] for turn in heard] == ["user", "assistant", "tool"]
        assert heard[2]["content"] == "서울: 맑음"
        parsed = await model.with_structured_output(Weather).ainvoke(ASKED)
        assert parsed == Weather(도시="서울", 기온=21)


async def test_curl_prints_each_piece_as_it_comes() -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": ASKED}], "stream": True})
    go = asyncio.Event()
    async with upstreams(patient) as up, edge_on(up.bus.url) as http:
        up.primary.script = Held(go, tokens=3)
        curl = await asyncio.create_subprocess_exec(
            "curl", "-sN", "--noproxy", "*", f"{http.base_url}/v1/chat/completions",
            "-H", "content-type: application/json", "-d", body, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert curl.stdout is not None
        async with asyncio.timeout(30):
            lines = [(await curl.stdout.readline()).decode() for _ in range(6)]
            said = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"] for line in lines[::2]]
            assert said == list(TOKENS[:3])
            assert not go.is_set()
            go.set()
            rest = (await curl.stdout.read()).decode()
        assert await curl.wait() == 0
        assert rest.endswith("data: [DONE]\n\n")
