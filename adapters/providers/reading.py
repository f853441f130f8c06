"""An answer as it comes in: cut into lines, bounded, timed, each piece told on at once."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Final
from uuid import uuid4

import httpx

from adapters.providers.failures import interrupted
from router.errors import AttemptError
from router.ports import Progress, ToolCallPiece
from schemas.failure import FailureKind
from schemas.outcome import Answer

DRAIN_S: Final = 0.25
"""What a whole answer waits for the end of its body, so that the connection can be used again."""
LINE_BYTES: Final = 8 << 20
ANSWER_BYTES: Final = 4 << 20


class Reading(ABC):
    """An answer as it comes in: bounded, and each piece told on at once. A dialect teaches it its lines."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._places: dict[int, int] = {}
        self._size = 0
        self.pieces = 0
        """What the answer has grown by; the patience for the next piece starts anew with each."""
        self.complete = False
        """The dialect's end mark was read: whatever follows, the answer is whole."""

    @abstractmethod
    def line(self, line: bytes) -> None:
        """Take one line, without its line end. Raises AttemptError."""

    @abstractmethod
    def answer(self) -> Answer:
        """The whole answer, once the body has ended. Raises AttemptError when it is not whole."""

    def on_text(self, piece: str | None) -> None:
        if piece:
            self.grow(piece)
            self._text.append(piece)
            self._progress.on_text(piece)

    def on_reasoning(self, piece: str | None) -> None:
        if piece:
            self.grow(piece)
            self._reasoning.append(piece)
            self._progress.on_reasoning(piece)

    def on_tool_call(
        self,
        index: int,
        arguments: str | None,
        *,
        call_id: str | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """A piece of call number `index`; pieces of several calls may come mixed. Returns the call so far."""
        arguments = arguments or ""
        self.grow(arguments)
        index = self._places.setdefault(index, len(self._places))  # some servers count from 1
        call = self._tool_calls.get(index)
        if call is None:
            # Results must find their call through a whole conversation.
            call = {
                "id": call_id or f"call_{uuid4().hex}",
                "type": "function",
                "function": {"name": "", "arguments": []},
            }
            self._tool_calls[index] = call
        first = not call["function"]["name"]
        call["function"]["name"] = call["function"]["name"] or name or ""
        call["function"]["arguments"].append(arguments)
        told = (call["id"], name) if first and name else (None, None)
        self._progress.on_tool_call(ToolCallPiece(index, arguments, *told))
        return call

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str | None:
        return "".join(self._reasoning) or None

    def tool_calls(self) -> tuple[dict[str, Any], ...]:
        """The calls in order, OpenAI-shaped: `{id, type, function: {name, arguments}}`, arguments as JSON text."""
        whole = []
        for _, call in sorted(self._tool_calls.items()):
            function = {**call["function"], "arguments": "".join(call["function"]["arguments"]) or "{}"}
            whole.append({**call, "function": function})
        return tuple(whole)

    def grow(self, piece: str) -> None:
        """Count a piece, of whatever kind, against the size of an answer."""
        self.pieces += 1
        self._size += len(piece) if piece.isascii() else len(piece.encode())
        if self._size > ANSWER_BYTES:
            raise AttemptError.of(FailureKind.MALFORMED, f"the answer is larger than {ANSWER_BYTES >> 20} MB")

    def feed(self, lines: Iterable[bytes]) -> bool:
        """Take lines until the answer is whole, and tell whether it is."""
        for line in lines:
            self.line(line)
            if self.complete:
                break
        return self.complete

    def last_line(self, line: bytes) -> None:
        """Take what came after the last line end. What is half a line here was cut off, not malformed."""
        try:
            self.line(line)
        except AttemptError as error:
            if error.failure.kind is not FailureKind.MALFORMED:
                raise
            raise interrupted("the answer ends in the middle of a line") from None


class Lines:
    """Cuts bytes into lines, however they arrive; a character split between two pieces stays whole."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        searched = len(self.rest)
        self.rest += data
        if self.rest.find(b"\n", searched) < 0:
            if len(self.rest) > LINE_BYTES:
                raise AttemptError.of(FailureKind.MALFORMED, f"a line is longer than {LINE_BYTES >> 20} MB")
            return []
        *lines, self.rest = self.rest.split(b"\n")
        return [bytes(line.removesuffix(b"\r")) for line in lines]


async def read(response: httpx.Response, reading: Reading, patience: asyncio.Timeout, idle_s: float) -> None:
    """Feed the body to `reading`, with patience for the first piece, then for each next one, then for the end."""
    clock = asyncio.get_running_loop().time
    lines = Lines()
    pieces = 0
    whole = False
    async for data in response.aiter_bytes():
        if whole:
            continue
        whole = reading.feed(lines.feed(data))
        if whole:
            patience.reschedule(clock() + DRAIN_S)
        elif reading.pieces > pieces:
            pieces = reading.pieces
            patience.reschedule(clock() + idle_s)
    if lines.rest and not whole:
        reading.last_line(bytes(lines.rest))
