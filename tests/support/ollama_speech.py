"""What Ollama's `/api/chat` says, as bytes."""

import json
from typing import Any


def line(message: dict[str, Any], **end: Any) -> bytes:
    said = {"model": "m", "created_at": "2026-08-21T00:00:00Z", "message": {"role": "assistant", **message}}
    return json.dumps({**said, "done": bool(end), **end}, ensure_ascii=False).encode() + b"\n"


def said(text: str) -> bytes:
    return line({"content": text})


def done(tokens_in: Any = 26, tokens_out: Any = 2) -> bytes:
    counts = {"load_duration": 2154458, "prompt_eval_count": tokens_in, "eval_count": tokens_out}
    return line({"content": ""}, done_reason="stop", total_duration=5191566416, **counts)


TEXT = "안녕 🙂 hi"
PIECES = said("안녕 ") + said("🙂 hi")
RECORDED = PIECES + done()
TOOLS = (
    line({"content": "", "tool_calls": [{"id": "a", "function": {"name": "weather", "arguments": {"도시": "서울"}}}]})
    + line({"content": "", "tool_calls": [{"id": "b", "function": {"name": "clock", "arguments": {"zone": 9}}}]})
    + done()
)
