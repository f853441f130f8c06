"""What Ollama refuses and what it says, without a model to say it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

UNIT_S: Final = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
THINK_WORDS: Final = ("low", "medium", "high", "max")
NUMBERS: Final = ("num_ctx", "num_predict", "temperature", "top_p", "seed", "num_batch", "num_gpu")


@dataclass(frozen=True)
class FakeModel:
    """A model on disk, and what it says. Without `answer` it repeats the last turn, or obeys the wanted format."""

    gb: float = 1
    load_s: float = 0
    answer: tuple[str, ...] | None = None
    thinking: tuple[str, ...] = ()
    tool_calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    """What it calls, unless it has just been told a result."""
    tools: bool = True
    """Whether it takes tools."""
    dimensions: int = 0
    """Of its vectors; a model with some embeds, and generates nothing."""

    @property
    def capabilities(self) -> list[str]:
        if self.dimensions:
            return ["embedding"]
        return ["completion", *["tools"] * self.tools, *["thinking"] * bool(self.thinking)]


@dataclass
class Refused(Exception):  # noqa: N818 - an answer, not an error
    status: int
    error: str


def check(body: Mapping[str, Any], model: FakeModel) -> None:
    """Raises Refused for what Ollama does not take of this model."""
    name, think, wanted = body["model"], body.get("think"), body.get("format")
    if think not in (None, True, False, *THINK_WORDS):
        raise Refused(400, f'invalid think value: "{think}" (must be "high", "medium", "low", "max", true, or false)')
    if think and not model.thinking:
        raise Refused(400, f'"{name}" does not support thinking')
    if body.get("tools") and not model.tools:
        raise Refused(400, f"{name} does not support tools")
    if wanted and wanted != "json" and not isinstance(wanted, dict):
        raise Refused(500, 'invalid format: expected "json" or a JSON schema')
    for option in NUMBERS:
        value = (body.get("options") or {}).get(option)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Refused(500, f'option "{option}" must be of type number')


def seconds(keep_alive: float | str | None) -> float | None:
    """A number of seconds, or a Go duration; whatever is negative is for ever."""
    if isinstance(keep_alive, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", keep_alive)
        if not parts or "".join(map("".join, parts)) != keep_alive.removeprefix("-"):
            raise Refused(400, f'time: missing unit in duration "{keep_alive}"')
        total = sum(float(number) * UNIT_S[unit] for number, unit in parts)
        keep_alive = -total if keep_alive.startswith("-") else total
    return math.inf if keep_alive is not None and keep_alive < 0 else keep_alive


def fitted(body: Mapping[str, Any], num_ctx: int) -> int:
    """The tokens of the prompt. Over-long chats lose their oldest turns without a word, unless they may not."""
    counts = [len(turn.get("content") or "") // 4 for turn in body["messages"]]
    if sum(counts) > num_ctx and body.get("truncate") is False:
        raise Refused(400, "the prompt is too long; exceeded max context length")
    while len(counts) > 1 and sum(counts) > num_ctx:
        counts.pop(0)
    return min(sum(counts), num_ctx)


def embedded(body: Mapping[str, Any], model: FakeModel, num_ctx: int) -> tuple[list[list[float]], int]:
    """The vectors, and the tokens of their texts. A text that is too long loses its end without a word, unless it may
    not. Nothing to embed is no error: that is how such a model is loaded."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) and given else given or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "invalid input type")
    counts = [len(text) // 4 + 1 for text in texts]
    if max(counts, default=0) > num_ctx and body.get("truncate") is False:
        raise Refused(400, "the input length exceeds the context length")
    return [_vector(text, model.dimensions, body.get("dimensions") or 0) for text in texts], sum(
        min(count, num_ctx) for count in counts
    )


def _vector(text: str, dimensions: int, wanted: int) -> list[float]:
    """Of length 1, by the text's words: texts with words in common are near each other. Shortened, never lengthened."""
    numbers = [0.0] * dimensions
    for word in text.split():
        numbers[int(sha256(word.encode()).hexdigest(), 16) % dimensions] += 1.0
    numbers = numbers[:wanted] if 0 < wanted < dimensions else numbers
    length = math.hypot(*numbers) or 1.0
    return [round(number / length, 8) for number in numbers]


def pieces(body: Mapping[str, Any], model: FakeModel) -> list[dict[str, Any]]:
    """The messages of the answer, one a line: thoughts before words, each tool call whole."""
    said = model.answer
    if said is None and isinstance(body.get("format"), dict):
        said = tuple(re.findall(r"\S+\s*", json.dumps(_instance(body["format"]), ensure_ascii=False)))
    if said is None:
        said = ("{", "}") if body.get("format") == "json" else _words(body["messages"][-1].get("content") or "")
    # A model that can think does, unless it is told not to.
    thoughts = model.thinking if body.get("think") is not False else ()
    calls = [
        {"id": f"call_{n}", "function": {"index": n, "name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(model.tool_calls)
        if body["messages"][-1].get("role") != "tool"
    ]
    return [
        *({"content": "", "thinking": piece} for piece in thoughts),
        *({"content": piece} for piece in said),
        *({"content": "", "tool_calls": [call]} for call in calls),
    ]


def joined(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The same as one message, for `stream: false`."""
    whole: dict[str, Any] = {"content": "".join(message["content"] for message in messages)}
    if thinking := "".join(message.get("thinking", "") for message in messages):
        whole["thinking"] = thinking
    if calls := [call for message in messages for call in message.get("tool_calls", ())]:
        whole["tool_calls"] = calls
    return whole


def line(body: Mapping[str, Any], message: Mapping[str, Any], end: Mapping[str, Any]) -> bytes:
    """An object of the stream, in the form of the endpoint: a prompt is answered by a response."""
    if "prompt" in body:
        said: dict[str, Any] = {"response": message["content"]}
        said |= {"thinking": message["thinking"]} if "thinking" in message else {}
    else:
        said = {"message": {"role": "assistant", **message}}
    whole = {"model": body["model"], "created_at": "2026-08-21T00:00:00Z", **said, **end}
    return json.dumps(whole, ensure_ascii=False).encode() + b"\n"


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\S+\s*", text))


def _instance(schema: Mapping[str, Any]) -> Any:
    """The least that obeys a schema of objects, lists, enums and plain values."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: _instance(part) for name, part in schema.get("properties", {}).items()}
        case "array":
            return []
        case "boolean":
            return True
        case "number" | "integer":
            return 0
    return ""
