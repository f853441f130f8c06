"""Anthropic's events of a stream: one block after the other, each begun and ended."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic_core import from_json

from adapters.edge import sse
from adapters.edge.errors import error_body
from adapters.edge.facts import within
from schemas.chunk import Chunk, ToolCallChunk
from schemas.failure import Error
from schemas.reply import Reply
from schemas.work import Usage

STOP_REASONS: Final[Mapping[str, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}

CallIds = Callable[[str | None, int], str]
"""The id of a call, from the one that its model gave it and its place in the answer."""


def usage(counted: Usage | None) -> dict[str, Any]:
    """Anthropic's `input_tokens` are those that no cache has to do with."""
    counts = counted or Usage()
    cached, written = counts.cached_tokens_in, counts.cache_write_tokens_in
    return {
        "input_tokens": counts.tokens_in - cached - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": counts.tokens_out,
        "output_tokens_details": {"thinking_tokens": counts.reasoning_tokens_out},
    }


def stopped(reply: Reply) -> dict[str, str | None]:
    """Why the answer ended, as a message says it and the last event of one."""
    if reply.finish_reason == "stop" and reply.stop_sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": reply.stop_sequence}
    return {"stop_reason": STOP_REASONS.get(reply.finish_reason or "", "end_turn"), "stop_sequence": None}


class MessageSpeech:
    """`message_start` to `message_stop`, which comes after a whole answer only."""

    ping = sse.event({"type": "ping"}, name="ping")

    def __init__(self, model: str, rid: str, call_id: CallIds, *, shows_thinking: bool) -> None:
        self._model = model
        self._rid = rid
        self._call_id = call_id
        self._shows_thinking = shows_thinking
        self._begun = False
        self._index = -1
        """Of the newest block."""
        self._open: str | None = None
        """Of what type that is, while it is open."""
        self._call: int | None = None
        """Which tool call it is."""
        self._called: set[int] = set()
        self._arguments: list[str] = []
        self._held: list[Chunk] = []
        """What came amid the call that is open: pieces of another."""

    def piece(self, chunk: Chunk) -> bytes:
        if self._must_wait(chunk):
            self._held.append(chunk)
            return b""
        said = self._begin(chunk.model) + self._say(chunk)
        return said + self._release() if self._held else said

    def end(self, reply: Reply) -> bytes:
        said = self._begin(reply.model) + b"".join(map(self._say, self._in_order())) + self._close()
        last = _event("message_delta", delta=stopped(reply), usage=usage(reply.usage), llm=within(reply))
        return said + last + _event("message_stop")

    def error(self, error: Error, status: int) -> bytes:
        return sse.event(error_body(error, status, "anthropic"), name="error")

    def _begin(self, model: str | None) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        message: dict[str, Any] = {
            "id": f"msg_{self._rid}", "type": "message", "role": "assistant", "model": model or self._model,
            "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage(None),
        }  # fmt: skip
        return _event("message_start", message=message)

    def _must_wait(self, chunk: Chunk) -> bool:
        """Calls may come mixed, blocks may not: another begins once the arguments of this one are whole."""
        return self._call is not None and not self._is_of_call(chunk) and not _whole("".join(self._arguments))

    def _is_of_call(self, chunk: Chunk) -> bool:
        return chunk.tool_call is not None and chunk.tool_call.index == self._call

    def _in_order(self) -> list[Chunk]:
        held, self._held = self._held, []
        return sorted(held, key=lambda chunk: -1 if chunk.tool_call is None else chunk.tool_call.index)

    def _release(self) -> bytes:
        said, waiting = b"", self._in_order()
        for chunk in waiting:
            if self._must_wait(chunk):
                self._held.append(chunk)
            else:
                said += self._say(chunk)
        return said

    def _say(self, chunk: Chunk) -> bytes:
        said = b""
        if self._shows_thinking and chunk.reasoning:
            said += self._opened("thinking", thinking="", signature="")
            said += self._delta("thinking_delta", thinking=chunk.reasoning)
        if self._shows_thinking and chunk.thinking_block:
            said += self._sealed(chunk.thinking_block)
        if chunk.text:
            said += self._opened("text", text="") + self._delta("text_delta", text=chunk.text)
        if chunk.tool_call is not None:
            said += self._calling(chunk.tool_call)
        return said

    def _sealed(self, block: dict[str, Any]) -> bytes:
        match block:
            case {"type": "thinking", "signature": str(signature)}:
                begun = self._opened("thinking", thinking="", signature="")
                return begun + self._delta("signature_delta", signature=signature) + self._close()
            case {"type": "redacted_thinking", "data": str(data)}:
                return self._close() + self._opened("redacted_thinking", data=data) + self._close()
        return b""

    def _calling(self, call: ToolCallChunk) -> bytes:
        said = b""
        if self._call != call.index:
            if call.index in self._called:
                return b""  # after whole arguments nothing can be meant
            self._called.add(call.index)
            said = self._close() + self._opened(
                "tool_use", id=self._call_id(call.id, call.index), name=call.name, input={}
            )
            self._call, self._arguments = call.index, []
        self._arguments.append(call.arguments)
        return said + (self._delta("input_json_delta", partial_json=call.arguments) if call.arguments else b"")

    def _opened(self, kind: str, **content: Any) -> bytes:
        if self._open == kind:
            return b""
        said = self._close()
        self._open, self._index = kind, self._index + 1
        return said + _event("content_block_start", index=self._index, content_block={"type": kind, **content})

    def _delta(self, kind: str, **content: Any) -> bytes:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **content})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = self._call = None
        return _event("content_block_stop", index=self._index)


def _event(kind: str, **more: Any) -> bytes:
    return sse.event({"type": kind, **more}, name=kind)


def _whole(arguments: str) -> bool:
    try:
        from_json(arguments)
    except ValueError:
        return False
    return True
