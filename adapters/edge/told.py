"""What of an answer a caller has been told already, so that the end can be compared with the whole."""

from collections import defaultdict
from typing import Any

from schemas.chunk import Chunk, ToolCallChunk
from schemas.reply import Reply


class Told:
    """One answer as far as it went out."""

    def __init__(self) -> None:
        self.attempt_id: str | None = None
        """The attempt whose content went out; None while none did."""
        self._heard: str | None = None
        self._next = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._arguments: defaultdict[int, list[str]] = defaultdict(list)

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
        if chunk.tool_call is not None:
            self._arguments[chunk.tool_call.index].append(chunk.tool_call.arguments)

    def rest(self, reply: Reply) -> list[Chunk] | None:
        """The pieces that complete the answer; None when what went out is not its beginning."""
        message = reply.message
        if message is None:
            return None
        whole = [
            (message.reasoning or "", "".join(self._reasoning), _reasoning),
            (message.content, "".join(self._text), _text),
        ]
        pieces = []
        for said, told, piece in whole:
            if not said.startswith(told):
                return None
            if left := said[len(told) :]:
                pieces.append(piece(reply, left))
        for index, call in enumerate(message.tool_calls):
            arguments, told = _arguments(call), "".join(self._arguments.get(index, ()))
            if index in self._arguments and told == arguments:
                continue
            if told:
                return None  # a call's pieces come with their name, or not at all
            pieces.append(_call(reply, index, call, arguments))
        return pieces

    def __bool__(self) -> bool:
        return self.attempt_id is not None


def has_content(chunk: Chunk) -> bool:
    return bool(chunk.text or chunk.reasoning or chunk.tool_call)


def _arguments(call: dict[str, Any]) -> str:
    return str(call.get("function", {}).get("arguments", ""))


def _text(reply: Reply, text: str) -> Chunk:
    return _chunk(reply, text=text)


def _reasoning(reply: Reply, text: str) -> Chunk:
    return _chunk(reply, reasoning=text)


def _call(reply: Reply, index: int, call: dict[str, Any], arguments: str) -> Chunk:
    name, call_id = call.get("function", {}).get("name"), call.get("id")
    return _chunk(reply, tool_call=ToolCallChunk(index=index, arguments=arguments, id=call_id, name=name))


def _chunk(reply: Reply, **content: Any) -> Chunk:
    attempt = reply.attempts[-1].attempt_id if reply.attempts else "1.1"
    return Chunk(
        request_id=reply.request_id, attempt_id=attempt, n=0, model=reply.model, node=reply.node,
        provider=reply.provider, **content,
    )  # fmt: skip
