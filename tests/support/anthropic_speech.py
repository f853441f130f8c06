"""What Anthropic's Messages API says, as bytes, and a provider that is asked once."""

import json
from typing import Any

import pytest
from pydantic import SecretStr

from adapters.providers.anthropic import Anthropic
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.failure import Failure
from schemas.outcome import Answer
from schemas.request import Chat
from tests.support.openai_speech import ASKED, CANARY, TEXT
from tests.support.scripted_upstream import Script, ScriptedUpstream

MODEL = "claude-sonnet-4-6"
SIGNATURE = "EqQBCkYIARgCKkBr7/서명+=="
SEALED = "EmwKAhgBEgy3va3pzix/LafPsn4a"
THOUGHT = "날씨를 찾아 보자 🤔"


def event(kind: str, **more: Any) -> bytes:
    body = json.dumps({"type": kind, **more}, ensure_ascii=False)
    return f"event: {kind}\ndata: {body}\n\n".encode()


def start(**usage: Any) -> bytes:
    counts = {"input_tokens": 20, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 7, "output_tokens": 1}
    message: dict[str, Any] = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {**counts, **usage},
    }  # fmt: skip
    return event("message_start", message=message)


def block(index: int, kind: str, **content: Any) -> bytes:
    return event("content_block_start", index=index, content_block={"type": kind, **content})


def piece(index: int, kind: str, text: str) -> bytes:
    name = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}.get(
        kind, "partial_json"
    )
    return event("content_block_delta", index=index, delta={"type": kind, name: text})


def stop(reason: str | None, *, usage: Any = None, **more: Any) -> bytes:
    counts = {"output_tokens": 15, "output_tokens_details": {"thinking_tokens": 6}} if usage is None else usage
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None, **more}, usage=counts)


PING = event("ping")
END = event("message_stop")


def closed(index: int) -> bytes:
    return event("content_block_stop", index=index)


BEGIN = start() + block(0, "text", text="") + PING
PIECES = BEGIN + piece(0, "text_delta", "안녕하세요 ") + piece(0, "text_delta", "🙂 hello")
FINISH = closed(0) + stop("end_turn")
SPOKEN = PIECES + FINISH + END
RECORDED = (
    start()
    + block(0, "thinking", thinking="", signature="")
    + PING
    + piece(0, "thinking_delta", "날씨를 찾아 ")
    + piece(0, "thinking_delta", "보자 🤔")
    + piece(0, "signature_delta", SIGNATURE)
    + closed(0)
    + block(1, "redacted_thinking", data=SEALED)
    + closed(1)
    + block(2, "text", text="")
    + piece(2, "text_delta", "안녕하세요 ")
    + piece(2, "text_delta", "🙂 hello")
    + closed(2)
    + stop("end_turn")
    + END
)
TOOLS = (
    start()
    + block(0, "text", text="")
    + piece(0, "text_delta", TEXT)
    + closed(0)
    + block(1, "tool_use", id="toolu_a", name="weather", input={})
    + piece(1, "input_json_delta", "")
    + piece(1, "input_json_delta", '{"도시":')
    + block(2, "tool_use", id="toolu_b", name="clock", input={})
    + piece(2, "input_json_delta", '{"zone"')
    + piece(1, "input_json_delta", ' "서울"}')
    + piece(2, "input_json_delta", ": 9}")
    + closed(1)
    + closed(2)
    + block(3, "tool_use", id="toolu_c", name="now", input={})
    + closed(3)
    + stop("tool_use")
    + END
)
REFUSED = (
    start()
    + stop("refusal", stop_details={"type": "refusal", "category": "cyber", "explanation": "도와드릴 수 없습니다"})
    + END
)


def error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def amid(kind: str, message: str = "Overloaded") -> bytes:
    return event("error", **error(kind, message))


def call(*, first_ms: int = 5000, idle_ms: int = 5000, backend: str = MODEL, **chat: Any) -> Call:
    asked = Chat.model_validate({"messages": [{"role": "user", "content": ASKED}], **chat})
    return Call(backend, asked, first_token_ms=first_ms, idle_ms=idle_ms)


async def ask(script: Script, asked: Call | None = None, progress: Progress | None = None) -> Answer:
    async with ScriptedUpstream(script) as upstream:
        provider = Anthropic(f"{upstream.url}/v1", keys=[SecretStr(CANARY)])
        try:
            return await provider.chat(asked or call(), progress or Progress())
        finally:
            await provider.aclose()


async def fail(script: Script, asked: Call | None = None) -> Failure:
    with pytest.raises(AttemptError) as caught:
        await ask(script, asked)
    return caught.value.failure
