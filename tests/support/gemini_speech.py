"""What Google's Gemini API says, as bytes, and a provider that is asked once."""

import json
from typing import Any

import pytest
from pydantic import SecretStr

from adapters.providers.gemini import Gemini
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.failure import Failure
from schemas.outcome import Answer
from schemas.request import Chat
from tests.support.scripted_upstream import Script, ScriptedUpstream

CANARY = "AIzaCanary-0123456789abcdef"
OTHER = "AIzaOther-fedcba9876543210"
MODEL = "gemini-2.5-flash"
ASKED = "서울 날씨를 알려 주세요 🙂"
TEXT = "안녕하세요 🙂 hello"
SIGNATURE = "CiQBPz8+c2lnbmVk"
USAGE = {
    "promptTokenCount": 20, "toolUsePromptTokenCount": 3, "candidatesTokenCount": 6, "thoughtsTokenCount": 4,
    "cachedContentTokenCount": 8, "totalTokenCount": 33,
}  # fmt: skip


def said(*parts: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """An event; its candidate has no content at all when there are no `parts`, as Google does it."""
    candidate: dict[str, Any] = {"index": 0}
    if parts:
        candidate["content"] = {"role": "model", "parts": list(parts)}
    if finish:
        candidate["finishReason"] = finish
    return event(candidates=[candidate], **more)


def event(**body: Any) -> bytes:
    body |= {"modelVersion": MODEL, "responseId": "r1"}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + END


def text(words: str) -> dict[str, Any]:
    return {"text": words}


def thought(words: str) -> dict[str, Any]:
    return {"text": words, "thought": True}


def calls(name: str, args: dict[str, Any], **more: Any) -> dict[str, Any]:
    signature = {"thoughtSignature": more.pop("signature")} if "signature" in more else {}
    return {"functionCall": {"name": name, "args": args, **more}, **signature}


END = b"\r\n\r\n"
PIECES = said(text("안녕하세요 "), usageMetadata={"promptTokenCount": 20, "totalTokenCount": 20}) + said(text("🙂 "))
FINISH = said(text("hello"), finish="STOP", usageMetadata=USAGE)
RECORDED = PIECES + FINISH
TOOLS = (
    said(thought("두 가지를 물어봐야 한다."))
    + said(calls("weather", {"도시": "서울"}, id="a", signature=SIGNATURE), calls("clock", {"zone": 9}, id="b"))
    + said(text(""), finish="STOP", usageMetadata=USAGE)
)


def call(*, backend: str = MODEL, first_ms: int = 5000, idle_ms: int = 5000, **chat: Any) -> Call:
    asked = Chat.model_validate({"messages": [{"role": "user", "content": ASKED}], **chat})
    return Call(backend, asked, first_token_ms=first_ms, idle_ms=idle_ms)


async def ask(script: Script, asked: Call | None = None, progress: Progress | None = None) -> Answer:
    async with ScriptedUpstream(script) as upstream:
        provider = Gemini(f"{upstream.url}/v1beta", keys=[SecretStr(CANARY)], key_names=["GEMINI_API_KEY"])
        try:
            return await provider.chat(asked or call(), progress or Progress())
        finally:
            await provider.aclose()


async def fail(script: Script, asked: Call | None = None) -> Failure:
    with pytest.raises(AttemptError) as caught:
        await ask(script, asked)
    return caught.value.failure


def error(code: int, message: str, status: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def detail(kind: str, **more: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **more}
