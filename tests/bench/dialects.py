"""What a provider itself costs: a call in, a recorded stream out, without a network.

python -m tests.bench.dialects
"""

import json
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any
from unittest.mock import patch

import httpx
import uvloop
from pydantic import SecretStr

from adapters.providers import DIALECTS, Setup, build
from router.ports import Call, Progress
from schemas.policy import Dialect
from schemas.request import Chat
from tests.bench.load import PROMPT

PROMPT_BYTES = 2048
PIECES = ("안녕하세요, ", "이것은 ", "녹음된 ", "answer ", "that is ", "streamed. ") * 4
TEXT = "".join(PIECES)
WARM_UP = 50


def _sse(*events: dict[str, Any]) -> list[bytes]:
    """Named as the dialects do that name them; the others ignore it."""
    named = ((f"event: {event['type']}\n" if "type" in event else "", event) for event in events)
    return [f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for name, event in named]


def _openai() -> list[bytes]:
    def event(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [
            {"index": 0, "delta": delta, "finish_reason": finish}]}  # fmt: skip

    usage = {"id": "c1", "choices": [], "usage": {"prompt_tokens": 700, "completion_tokens": 40, "total_tokens": 740}}
    texts = (event({"content": piece}) for piece in PIECES)
    return [*_sse(event({"role": "assistant"}), *texts, event({}, "stop"), usage), b"data: [DONE]\n\n"]


def _ollama() -> list[bytes]:
    lines: list[dict[str, Any]] = [
        {"model": "m", "message": {"role": "assistant", "content": piece}, "done": False} for piece in PIECES
    ]
    counted = {"prompt_eval_count": 700, "eval_count": 40, "load_duration": 1_000_000}
    lines.append({"model": "m", "message": {"content": ""}, "done": True, "done_reason": "stop", **counted})
    return [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines]


def _anthropic() -> list[bytes]:
    message: dict[str, Any] = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "m",
        "stop_reason": None,
    }
    return _sse(
        {"type": "message_start", "message": {**message, "usage": {"input_tokens": 700, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": p}} for p in PIECES),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 40}},
        {"type": "message_stop"},
    )


def _gemini() -> list[bytes]:
    def event(text: str, **more: str) -> dict[str, Any]:
        counted = {"promptTokenCount": 700, "candidatesTokenCount": 40, "totalTokenCount": 740}
        candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **more}
        return {"candidates": [candidate], "usageMetadata": counted, "modelVersion": "m", "responseId": "r1"}

    *texts, last = PIECES
    return _sse(*map(event, texts), event(last, finishReason="STOP"))


def _cohere() -> list[bytes]:
    usage = {"billed_units": {"input_tokens": 700, "output_tokens": 40}, "tokens": {
        "input_tokens": 710, "output_tokens": 42}}  # fmt: skip
    return _sse(
        {"type": "message-start", "id": "m1", "delta": {"message": {"role": "assistant", "content": []}}},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
        *({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": p}}}} for p in PIECES),
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": usage}},
    )


RECORDED = {"openai": _openai, "ollama": _ollama, "anthropic": _anthropic, "gemini": _gemini, "cohere": _cohere}


def _in_memory(pieces: Iterable[bytes]) -> httpx.MockTransport:
    """Answers everything with the recording, a piece at a time as a network would bring it."""
    recording = tuple(pieces)

    async def body() -> AsyncIterator[bytes]:
        for piece in recording:
            yield piece

    headers = {"Content-Type": "text/event-stream"}
    return httpx.MockTransport(lambda _request: httpx.Response(200, headers=headers, content=body()))


async def adapter_p50_ms(dialect: Dialect, calls: int) -> float:
    """Milliseconds of one call at the median. Raises SystemExit when the answer is not what was recorded."""
    recording = RECORDED[dialect]() if dialect in RECORDED else []
    prompt = (PROMPT * 20).encode()[:PROMPT_BYTES].decode(errors="ignore")
    told = {"loopback": {"text": TEXT, "pieces": len(PIECES)}}
    chat = Chat.model_validate(
        {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1000, "metadata": told}
    )
    call = Call("m", chat, first_token_ms=10_000, idle_ms=10_000)
    with patch("adapters.providers.http.Transport", lambda *_args, **_options: _in_memory(recording)):
        provider = build(dialect, Setup(url="http://127.0.0.1:1", keys=(SecretStr("sk-no-key"),)))
    took = []
    try:
        for _ in range(WARM_UP + calls):
            begun = time.perf_counter()
            answer = await provider.chat(call, Progress())
            took.append((time.perf_counter() - begun) * 1000)
            if answer.text != TEXT:
                raise SystemExit(f"{dialect} answered {answer.text!r}: its figure would mean nothing")
    finally:
        await provider.aclose()
    return statistics.median(took[WARM_UP:])


async def every_dialect(calls: int) -> dict[str, float]:
    """The median of each in milliseconds."""
    return {dialect: round(await adapter_p50_ms(dialect, calls), 3) for dialect in DIALECTS}


async def main() -> None:
    for dialect, ms in (await every_dialect(1000)).items():
        print(f"{dialect:10} {ms:.3f} ms")


if __name__ == "__main__":
    uvloop.run(main())
