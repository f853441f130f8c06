"""What OpenAI-compatible servers say, as bytes, and a provider that is asked once."""

import json
from typing import Any

import pytest
from pydantic import SecretStr

from adapters.providers.openai import OpenAI
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.failure import Failure
from schemas.outcome import Answer
from schemas.request import Chat
from tests.support.scripted_upstream import JSON, Script, ScriptedUpstream

CANARY = "sk-canary-0123456789abcdef"
OTHER = "sk-other-fedcba9876543210"
ASKED = "서울 날씨를 알려 주세요 🙂"
TEXT = "안녕하세요 🙂 hello"
USAGE = {
    "prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 8}, "completion_tokens_details": {"reasoning_tokens": 4},
}  # fmt: skip


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {
        "id": "c1", "object": "chat.completion.chunk", "created": 1790000000, "model": "m", "choices": choices, **more,
    }  # fmt: skip
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def tool(index: int, arguments: str, **first: str) -> dict[str, Any]:
    function = {"name": first.pop("name"), "arguments": arguments} if "name" in first else {"arguments": arguments}
    return {"index": index, **first, "function": function}


DONE = b"data: [DONE]\n\n"
FINISH = event({}, "stop")
PIECES = (
    event({"role": "assistant", "content": ""}) + event({"content": "안녕하세요 "}) + event({"content": "🙂 hello"})
)
RECORDED = PIECES + FINISH + event(usage=USAGE) + DONE
TOOLS = (
    event({"tool_calls": [tool(0, "", id="a", name="weather"), tool(1, "", id="b", name="clock")]})
    + event({"tool_calls": [tool(1, '{"zone":'), tool(0, '{"도시":')]})
    + event({"tool_calls": [tool(0, '"서울"}'), tool(1, "9}")]})
    + event({}, "tool_calls")
    + DONE
)


def call(*, first_ms: int = 5000, idle_ms: int = 5000, **chat: Any) -> Call:
    asked = Chat.model_validate({"messages": [{"role": "user", "content": ASKED}], **chat})
    return Call("gpt-x", asked, first_token_ms=first_ms, idle_ms=idle_ms)


def streaming(body: bytes, piece: int = 1 << 16) -> Script:
    return lambda exchange: exchange.stream(body, piece=piece)


def refusing(status: int, body: Any, **headers: str) -> Script:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda exchange: exchange.reply(status, content, {**JSON, **named})


async def ask(script: Script, asked: Call | None = None, progress: Progress | None = None) -> Answer:
    async with ScriptedUpstream(script) as upstream:
        provider = OpenAI(upstream.url, keys=[SecretStr(CANARY)])
        try:
            return await provider.chat(asked or call(), progress or Progress())
        finally:
            await provider.aclose()


async def fail(script: Script, asked: Call | None = None) -> Failure:
    with pytest.raises(AttemptError) as caught:
        await ask(script, asked)
    return caught.value.failure


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}
