"""What of an answer a caller has been told already, so that the end can be compared with the whole."""

from collections import defaultdict
from typing import Any

from schemas.chunk import Chunk, ToolCallChunk
from schemas.reply import Reply, ReplyMessage


class Told:
    """One answer as far as it went out."""

    def __init__(self) -> None:
        self.attempt_id: str | None = None
        """The attempt whose content went out; None while none did."""
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._blocks = 0
        """Records of thinking."""
        self._arguments: defaultdict[int, list[str]] = defaultdict(list)

    def continues(self, chunk: Chunk) -> bool:
        """Whether it belongs to what went out; content of another attempt does not, nor does that it has begun."""
        return self.attempt_id in (None, chunk.attempt_id)

    def add(self, chunk: Chunk) -> None:
        self.attempt_id = chunk.attempt_id
        self._text.append(chunk.text)
        self._reasoning.append(chunk.reasoning or "")
        self._blocks += chunk.thinking_block is not None
        if chunk.tool_call is not None:
            self._arguments[chunk.tool_call.index].append(chunk.tool_call.arguments)

    def rest(self, reply: Reply) -> list[Chunk] | None:
        """The pieces that complete the answer; None when what went out is not its beginning."""
        message = reply.message
        if message is None:
            return None
        pieces = self._thinking(reply, message)
        words = "".join(self._text)
        if pieces is None or not message.content.startswith(words):
            return None
        if left := message.content[len(words) :]:
            pieces.append(_chunk(reply, text=left))
        for index, call in enumerate(message.tool_calls):
            arguments, told = _arguments(call), "".join(self._arguments.get(index, ()))
            if index in self._arguments and told == arguments:
                continue
            if told:
                return None  # a call's pieces come with their name, or not at all
            pieces.append(_call(reply, index, call, arguments, named=index not in self._arguments))
        return pieces

    def _thinking(self, reply: Reply, message: ReplyMessage) -> list[Chunk] | None:
        """What is left of the thinking, each record of it after the words that it is of."""
        words, told = message.reasoning or "", "".join(self._reasoning)
        if not words.startswith(told):
            return None
        pieces, at, end = [], len(told), 0
        for n, block in enumerate(message.thinking_blocks):
            own = str(block.get("thinking", ""))
            end = max(end, words.find(own, end) + len(own))
            if n < self._blocks:
                continue
            if left := words[at:end]:
                pieces.append(_chunk(reply, reasoning=left))
            pieces.append(_chunk(reply, thinking_block=block))
            at = max(at, end)
        if left := words[at:]:
            pieces.append(_chunk(reply, reasoning=left))
        return pieces

    def __bool__(self) -> bool:
        return self.attempt_id is not None


def has_content(chunk: Chunk) -> bool:
    return bool(chunk.text or chunk.reasoning or chunk.tool_call or chunk.thinking_block)


def _arguments(call: dict[str, Any]) -> str:
    return str(call.get("function", {}).get("arguments", ""))


def _call(reply: Reply, index: int, call: dict[str, Any], arguments: str, *, named: bool) -> Chunk:
    name, call_id = (call.get("function", {}).get("name"), call.get("id")) if named else (None, None)
    return _chunk(reply, tool_call=ToolCallChunk(index=index, arguments=arguments, id=call_id, name=name))


def _chunk(reply: Reply, **content: Any) -> Chunk:
    attempt = reply.attempts[-1].attempt_id if reply.attempts else "1.1"
    return Chunk(
        request_id=reply.request_id, attempt_id=attempt, n=0, model=reply.model, node=reply.node,
        provider=reply.provider, **content,
    )  # fmt: skip
