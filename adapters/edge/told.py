"""What of an answer a caller has been told already, so that the end can be compared with the whole."""

from dataclasses import dataclass, field
from typing import Any

from schemas.chunk import Chunk, ToolCallChunk
from schemas.reply import Reply, ReplyMessage


@dataclass(slots=True)
class _Call:
    """A tool call as far as it went out."""

    id: str | None = None
    name: str | None = None
    arguments: list[str] = field(default_factory=list)

    def add(self, piece: ToolCallChunk) -> None:
        self.id, self.name = self.id or piece.id, self.name or piece.name
        self.arguments.append(piece.arguments)


class Told:
    """One answer as far as it went out."""

    def __init__(self) -> None:
        self.attempt_id: str | None = None
        """The attempt whose content went out; None while none did."""
        self._heard: str | None = None
        self._next = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._blocks = 0
        """Records of thinking."""
        self._calls: dict[int, _Call] = {}

    def continues(self, chunk: Chunk) -> bool:
        """Whether it belongs to what went out; content of another attempt does not, nor does that it has begun."""
        return self.attempt_id in (None, chunk.attempt_id)

    def follows(self, chunk: Chunk) -> bool:
        """Whether nothing of its attempt is missing before it; once something is, the reply brings the rest."""
        if chunk.attempt_id != self._heard:
            self._heard, self._next = chunk.attempt_id, 0
        if chunk.n != self._next:
            return False
        self._next += 1
        return True

    def add(self, chunk: Chunk) -> None:
        self.attempt_id = chunk.attempt_id
        self._text.append(chunk.text)
        self._reasoning.append(chunk.reasoning or "")
        self._blocks += chunk.thinking_block is not None
        if (piece := chunk.tool_call) is not None:
            self._calls.setdefault(piece.index, _Call()).add(piece)

    def rest(self, reply: Reply) -> list[Chunk] | None:
        """The pieces that complete the answer; None when what went out is not its beginning.

        The beginning of another attempt's answer is not, though it may read the same.
        """
        message = reply.message
        answered = reply.attempts[-1].attempt_id if reply.attempts else None
        if message is None or (self and answered not in (None, self.attempt_id)):
            return None
        pieces = self._thinking(reply, message)
        text = _left(message.content, self._text)
        if pieces is None or text is None or self._calls.keys() - range(len(message.tool_calls)):
            return None
        pieces += [_chunk(reply, text=text)] if text else []
        for index, call in enumerate(message.tool_calls):
            piece = _rest_of_call(index, call, self._calls.get(index, _Call()))
            if piece is None:
                return None
            if piece.name or piece.arguments:
                pieces.append(_chunk(reply, tool_call=piece))
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


def _left(whole: str, told: list[str]) -> str | None:
    beginning = "".join(told)
    return whole[len(beginning) :] if whole.startswith(beginning) else None


def _rest_of_call(index: int, call: dict[str, Any], told: _Call) -> ToolCallChunk | None:
    """A call's id and name go out once."""
    function = call.get("function", {})
    name, call_id = function.get("name"), call.get("id")
    left = _left(str(function.get("arguments", "")), told.arguments)
    if left is None or told.name not in (None, name) or told.id not in (None, call_id):
        return None
    if told.name is not None:
        name = call_id = None
    return ToolCallChunk(index=index, arguments=left, id=call_id, name=name)


def _chunk(reply: Reply, **content: Any) -> Chunk:
    attempt = reply.attempts[-1].attempt_id if reply.attempts else "1.1"
    return Chunk(
        request_id=reply.request_id, attempt_id=attempt, n=0, model=reply.model, node=reply.node,
        provider=reply.provider, **content,
    )  # fmt: skip
