"""Anthropic's Messages API, and whoever speaks it: `/messages`, streamed as server-sent events."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pydantic_core import to_json

from adapters.providers.anthropic_request import request_body
from adapters.providers.failures import interrupted, malformed, said_in_stream, usage_of
from adapters.providers.hosted import Hosted
from adapters.providers.sse import EventReading
from router.ports import Call, Progress
from schemas.base import Wire
from schemas.outcome import Answer, FinishReason
from schemas.work import Usage

VERSION: Final = "2023-06-01"
"""The later one, 2026-10-21, takes no temperature and no top_p from anybody, not even for models that know them."""
FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Any other, `end_turn`, `stop_sequence` and what may come, is a stop."""


class _Block(Wire):
    """A block of the answer as it starts, or a piece of one."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    partial_json: str | None = None


class _StopDetails(Wire):
    explanation: str | None = None


class _Delta(_Block):
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None


class _Message(Wire):
    content: tuple[_Block, ...] = ()
    usage: Any = None


class _Event(Wire):
    """An event; or a whole message, from a server that does not stream."""

    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: Any = None
    error: Any = None
    content: tuple[_Block, ...] = ()
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None


class Anthropic(Hosted):
    """One account at one server that speaks Anthropic's dialect."""

    key_header = "x-api-key"
    key_prefix = ""
    headers: ClassVar[Mapping[str, str]] = {"anthropic-version": VERSION}
    listed_at = ("/models?limit=1000", "data", "id")

    async def chat(self, call: Call, progress: Progress) -> Answer:
        body = request_body(call.backend, call.chat)
        return await self._upstream.chat("/messages", body, call, lambda: _AnthropicReading(progress), self._keys)


class _AnthropicReading(EventReading[_Event]):
    """Events until `message_stop`."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress, _Event)
        self._calls: dict[int, int] = {}
        """By the index of its block, which number a tool call has."""
        self._thoughts: dict[int, dict[str, Any]] = {}
        """By its index, each block of thinking as it is to be sent back, its texts still in pieces."""
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None
        self._usage: dict[str, Any] = {}

    def take(self, event: _Event) -> None:
        match event.type:
            case "error":
                raise said_in_stream(event.error, began=self.pieces > 0)
            case "message_start" if event.message is not None:
                self._count(event.message.usage)
                self._usage.pop("output_tokens", None)  # of what is to come; `message_delta` tells
            case "content_block_start" if event.content_block is not None:
                self._start(event.index, event.content_block)
            case "content_block_delta" if event.delta is not None:
                self._piece(event.index, event.delta)
            case "content_block_stop":
                self._closed(event.index)
            case "message_delta":
                self._count(event.usage)
                if event.delta is not None:
                    self._stop(event.delta)
            case "message_stop":
                if self._stop_reason is None:
                    raise malformed("the message stopped without a stop_reason", event.encode())
                self.complete = True

    def answer(self) -> Answer:
        if (body := self.whole_body()) is not None:
            self._whole(body)
        if not self.complete:
            raise interrupted("the answer ended without its message_stop")
        return Answer(
            text=self.text,
            reasoning=self.reasoning,
            tool_calls=self.tool_calls(),
            thinking_blocks=self._thinking_blocks(),
            finish_reason=FINISH_REASONS.get(self._stop_reason or "", "stop"),
            stop_sequence=self._stop_sequence if self._stop_reason == "stop_sequence" else None,
            usage=_usage(self._usage),
        )

    def _whole(self, body: _Event) -> None:
        if body.type != "message" and body.error is None:
            raise malformed("the answer is not a message", body.encode())
        if body.error is not None:
            raise said_in_stream(body.error, began=False)
        for index, block in enumerate(body.content):
            self._start(index, block)
            self._closed(index)
        self._count(body.usage)
        self._stop(body)
        self.complete = self._stop_reason is not None

    def _start(self, index: int, block: _Block) -> None:
        match block.type:
            case "tool_use":
                number = self._calls.setdefault(index, len(self._calls))
                arguments = to_json(block.input).decode() if block.input else ""
                self.on_tool_call(number, arguments, call_id=block.id, name=block.name)
            case "thinking":
                self._thoughts[index] = {"type": "thinking", "thinking": [], "signature": []}
                self._piece(index, block)
            case "redacted_thinking":
                self._thoughts[index] = {"type": "redacted_thinking", "data": []}
                self._piece(index, block)
            case "text":
                self.on_text(block.text)

    def _piece(self, index: int, piece: _Block) -> None:
        self.on_text(piece.text)
        if piece.partial_json and index in self._calls:
            self.on_tool_call(self._calls[index], piece.partial_json)
        if (thought := self._thoughts.get(index)) is not None:
            self.on_reasoning(piece.thinking)
            for name, text in (("thinking", piece.thinking), ("signature", piece.signature), ("data", piece.data)):
                if text and name in thought:
                    thought[name].append(text)
            if unseen := piece.signature or piece.data:
                self.grow(unseen)

    def _closed(self, index: int) -> None:
        if index in self._thoughts and (block := _sealed(self._thoughts[index])):
            self._progress.on_thinking_block(block)

    def _thinking_blocks(self) -> tuple[dict[str, Any], ...]:
        return tuple(block for _, thought in sorted(self._thoughts.items()) if (block := _sealed(thought)))

    def _stop(self, said: _Delta | _Event) -> None:
        self._stop_reason = said.stop_reason or self._stop_reason
        self._stop_sequence = said.stop_sequence or self._stop_sequence
        if said.stop_reason == "refusal" and said.stop_details is not None and not self.text:
            self.on_text(said.stop_details.explanation)

    def _count(self, usage: Any) -> None:
        """Counts are cumulative: a later one takes the place of an earlier one."""
        if isinstance(usage, dict):
            self._usage |= {name: count for name, count in usage.items() if count is not None}


def _sealed(thought: dict[str, Any]) -> dict[str, Any] | None:
    """Only what is signed, or sealed as a whole: the API refuses to have anything else back."""
    whole = {name: said if isinstance(said, str) else "".join(said) for name, said in thought.items()}
    return whole if whole.get("signature") or whole.get("data") else None


def _usage(said: dict[str, Any]) -> Usage | None:
    fresh, made = said.get("input_tokens"), said.get("output_tokens")
    read, written = (said.get(f"cache_{name}_input_tokens", 0) for name in ("read", "creation"))
    details = said.get("output_tokens_details")
    thought = (details.get("thinking_tokens") or 0) if isinstance(details, dict) else 0
    counts = (fresh, read, written)
    if any(type(count) is not int or count < 0 for count in counts):
        return None
    usage = usage_of(sum(counts), made, read, thought, written)
    # Nobody answers with no tokens at all: that server does not count.
    return usage if usage and usage.tokens_in + usage.tokens_out else None
