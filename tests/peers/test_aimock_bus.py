"""The whole bus over aimock: one vendor limits or breaks off, another answers, each asked as often as it should be."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
import yaml

from ops.node import node
from schemas import LlmRequest
from tests.support.aimock import Aimock
from tests.support.dialects import ASKED, CANARY, WHERE, every
from tests.support.inside import Inside, inside

pytestmark = pytest.mark.node

PRIMARY = "gpt-4"
USAGE = {"prompt_tokens": 1000, "completion_tokens": 500}


def policy(url: str, fallback: str) -> str:
    """An OpenAI model, and behind it one of the dialect `fallback`."""
    dialects = {"primary": ("openai", PRIMARY), "second": (fallback, WHERE[fallback][1])}
    return yaml.safe_dump(
        {
            "version": 1,
            "nodes": {"cloud": {}},
            "providers": {
                name: {"dialect": dialect, "url": url + WHERE[dialect][0], "keys": ["CANARY_KEY"]}
                for name, (dialect, _) in dialects.items()
            },
            "models": {
                name: {
                    "nodes": ["cloud"], "provider": name, "backend": backend, "context_tokens": 100_000,
                    "quality": 0.5, "tokens_per_s": 100, "first_token_ms": 2000, "idle_ms": 2000,
                    "price": {"input_usd_per_mtok": at, "output_usd_per_mtok": 2 * at},
                }
                for at, (name, (_, backend)) in enumerate(dialects.items(), start=1)
            },
            "capabilities": {"chat": {"models": ["primary"]}},
            "default": {"models": ["primary"]},
            "fallbacks": {"default": ["second"]},
        }
    )  # fmt: skip


@asynccontextmanager
async def bus(aimock: Aimock, fallback: str, *fixtures: dict[str, Any]) -> AsyncIterator[Inside]:
    """`fixtures` are the primary's; the fallback says its dialect."""
    second = {
        "match": {"model": WHERE[fallback][1]},
        "response": {"content": f"{fallback}의 답입니다", "usage": USAGE},
        "chunkSize": 3,
    }
    await aimock.teach(*({**each, "match": {"model": PRIMARY, **each.get("match", {})}} for each in fixtures), second)
    async with inside(nodes=False, policy=policy(aimock.url, fallback)) as whole:
        await whole.stack.enter_async_context(node(whole.url, "cloud", environ={"CANARY_KEY": CANARY}))
        yield whole


async def models_asked(aimock: Aimock) -> list[str]:
    return [entry["body"]["model"] for entry in await aimock.asked()]


@every("openai", "anthropic", "gemini")
async def test_a_primary_that_wants_a_long_wait_is_replaced_after_one_call(aimock: Aimock, dialect: str) -> None:
    limited = {"response": {"error": {"message": "rate limit"}, "status": 429, "retryAfter": 3600}}
    async with bus(aimock, dialect, limited) as whole:
        reply = await whole.client.ask(LlmRequest(prompt=ASKED, stream=True))
    assert reply.message is not None
    assert (reply.message.content, reply.model, reply.backend) == (f"{dialect}의 답입니다", "second", WHERE[dialect][1])
    assert [(each.model, each.failure.retry_after_ms if each.failure else None) for each in reply.attempts] == [
        ("primary", 3_600_000),
        ("second", None),
    ]
    assert reply.usage is not None
    assert (reply.usage.tokens_in, reply.usage.tokens_out) == (1000, 500)
    assert reply.cost_usd == Decimal("0.004")
    assert await models_asked(aimock) == [PRIMARY, WHERE[dialect][1]]


async def test_a_short_wait_is_kept_and_the_primary_answers(aimock: Aimock) -> None:
    limited = {
        "match": {"sequenceIndex": 0},
        "response": {"error": {"message": "rate limit"}, "status": 429, "retryAfter": 1},
    }
    served = {"response": {"content": "기다린 보람", "usage": USAGE}}
    async with bus(aimock, "openai", limited, served) as whole:
        reply = await whole.client.ask(ASKED)
    assert reply.message is not None
    assert (reply.message.content, reply.model, len(reply.attempts)) == ("기다린 보람", "primary", 2)
    first, again = await aimock.asked()
    assert [entry["body"]["model"] for entry in (first, again)] == [PRIMARY, PRIMARY]
    assert again["timestamp"] - first["timestamp"] >= 1000


@every("openai", "anthropic", "gemini")
async def test_a_stream_broken_off_is_started_over_by_the_fallback(aimock: Aimock, dialect: str) -> None:
    text = "하나 둘 셋 넷 다섯 여섯 일곱 여덟"
    broken = {"response": {"content": text}, "chunkSize": 2, "latency": 5, "truncateAfterChunks": 6}
    async with bus(aimock, dialect, broken) as whole:
        reply = await whole.client.ask(LlmRequest(prompt=ASKED, stream=True))
    assert reply.message is not None
    assert reply.message.content == f"{dialect}의 답입니다"
    assert [each.failure.kind if each.failure else None for each in reply.attempts] == ["interrupted", None]
    assert await models_asked(aimock) == [PRIMARY, WHERE[dialect][1]]
