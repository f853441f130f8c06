"""OpenAI's own Python clients at an HTTP edge, and what the upstreams behind it say to them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import openai

from ops.edge import edge
from tests.support.openai_speech import DONE, USAGE, event
from tests.support.scripted_upstream import Script

T = TypeVar("T")
ASKED = "서울 날씨를 알려 줘"
WEATHER = {
    "type": "object",
    "properties": {"도시": {"type": "string"}},
    "required": ["도시"],
    "additionalProperties": False,
}


@asynccontextmanager
async def openai_on(url: str, *, keys: bool = False, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    """The asynchronous client of an edge of its own on the bus at `url`; it repeats nothing unless told."""
    async with edge(url, port=0, keys=keys) as address:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        more = {"max_retries": 0, "timeout": 30, **options}
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", http_client=http, **more) as client:
            yield client


async def synchronously(client: openai.AsyncOpenAI, work: Callable[[openai.OpenAI], T]) -> T:
    """What `work` makes of the synchronous client at the same edge, in a thread."""

    def run() -> T:
        http = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url=client.base_url, api_key="none", max_retries=0, http_client=http) as same:
            return work(same)

    return await asyncio.to_thread(run)


def saying(*deltas: dict[str, Any], finish: str = "stop") -> Script:
    """A whole answer of these deltas."""
    body = b"".join(map(event, deltas)) + event({}, finish) + event(usage=USAGE) + DONE
    return lambda exchange: exchange.stream(body)


def in_turn(*scripts: Script) -> Script:
    """One for each request."""
    following = iter(scripts)
    return lambda exchange: next(following)(exchange)
