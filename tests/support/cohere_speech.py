"""What Cohere's `/v2/chat` says, as bytes, and a provider that is asked once."""

import json
from typing import Any

import pytest
from pydantic import SecretStr

from adapters.providers.cohere import Cohere
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.failure import Failure
from schemas.outcome import Answer
from schemas.request import Chat
from tests.support.scripted_upstream import Script, ScriptedUpstream

CANARY = "co-canary-0123456789abcdef"
MODEL = "command-a-03-2025"
ASKED = "서울 날씨를 알려 주세요 🙂"
TEXT = "안녕하세요 🙂 hello"
USAGE = {
    "billed_units": {"input_tokens": 11, "output_tokens": 10},
    "tokens": {"input_tokens": 78, "output_tokens": 12},
    "cached_tokens": 8,
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "오늘의 날씨",
        "parameters": {"type": "object", "properties": {"도시": {"type": "string"}}, "required": ["도시"]},
    },
}


def event(kind: str, message: dict[str, Any] | None = None, **more: Any) -> bytes:
    body = {"type": kind, **({} if message is None else {"delta": {"message": message}}), **more}
    return f"event: {kind}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def said(text: str) -> bytes:
    return event("content-delta", {"content": {"text": text}}, index=0)


def end(finish: str | None = "COMPLETE", **more: Any) -> bytes:
    reason = {} if finish is None else {"finish_reason": finish}
    return event("message-end", id="c1", delta={**reason, **more})


def tool(index: int, arguments: str, **first: str) -> bytes:
    """The start of a call when it has an id, else its next piece."""
    if "id" not in first:
        return event("tool-call-delta", {"tool_calls": {"function": {"arguments": arguments}}}, index=index)
    function = {"name": first["name"], "arguments": arguments}
    return event(
        "tool-call-start", {"tool_calls": {"id": first["id"], "type": "function", "function": function}}, index=index
    )


START = event(
    "message-start", {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}, id="c1"
)
PIECES = (
    START
    + event("content-start", {"content": {"type": "text", "text": ""}}, index=0)
    + said("안녕하세요 ")
    + said("🙂 hello")
)
FINISH = event("content-end", index=0)
RECORDED = PIECES + FINISH + end(usage=USAGE)
THINKING = (
    START
    + event("content-start", {"content": {"type": "thinking", "thinking": ""}}, index=0)
    + event("content-delta", {"content": {"thinking": "음, "}}, index=0)
    + event("content-delta", {"content": {"thinking": "생각"}}, index=0)
    + event("content-end", index=0)
    + event("content-start", {"content": {"type": "text", "text": ""}}, index=1)
    + event("content-delta", {"content": {"text": TEXT}}, index=1)
    + event("content-end", index=1)
    + event("citation-start", {"citations": {"start": 0, "end": 5, "text": "안녕하세요", "sources": []}}, index=0)
    + event("citation-end", index=0)
    + end(usage=USAGE)
)
PLAN = "두 도구를 쓰겠습니다."
TOOLS = (
    START
    + event("tool-plan-delta", {"tool_plan": "두 도구를 "})
    + event("tool-plan-delta", {"tool_plan": "쓰겠습니다."})
    + tool(0, "", id="a", name="weather")
    + tool(0, '{"도시":')
    + tool(0, '"서울"}')
    + event("tool-call-end", index=0)
    + tool(1, "", id="b", name="clock")
    + tool(1, '{"zone":')
    + tool(1, "9}")
    + event("tool-call-end", index=1)
    + end("TOOL_CALL", usage=USAGE)
)


def call(*, first_ms: int = 5000, idle_ms: int = 5000, **chat: Any) -> Call:
    asked = Chat.model_validate({"messages": [{"role": "user", "content": ASKED}], **chat})
    return Call(MODEL, asked, first_token_ms=first_ms, idle_ms=idle_ms)


def streaming(body: bytes, piece: int = 1 << 16) -> Script:
    return lambda exchange: exchange.stream(body, piece=piece)


async def ask(script: Script, asked: Call | None = None, progress: Progress | None = None) -> Answer:
    async with ScriptedUpstream(script) as upstream:
        provider = Cohere(f"{upstream.url}/v2", keys=[SecretStr(CANARY)])
        try:
            return await provider.chat(asked or call(), progress or Progress())
        finally:
            await provider.aclose()


async def fail(script: Script, asked: Call | None = None) -> Failure:
    with pytest.raises(AttemptError) as caught:
        await ask(script, asked)
    return caught.value.failure
