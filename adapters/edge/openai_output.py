"""What `POST /v1/responses` answers: a response and its items, whole or as events."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from adapters.edge import sse
from adapters.edge.door import Asked
from adapters.edge.facts import within
from adapters.edge.openai_input import sealed
from schemas.chunk import Chunk, ToolCallChunk
from schemas.failure import Error
from schemas.reply import Reply
from schemas.work import Usage

Kind = Literal["reasoning", "message"]
Item = dict[str, Any]

PREFIXES: Final = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
TEXTS: Final[Mapping[Kind, str]] = {"reasoning": "reasoning_text", "message": "output_text"}
INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
CODES: Final = {400: "invalid_prompt", 413: "invalid_prompt", 429: "rate_limit_exceeded"}
"""Of the few that the dialect has for a response that failed; any other is `server_error`."""


def response(asked: Asked, rid: str, status: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"resp_{rid}", "object": "response", "created_at": int(time.time()), "status": status,
        "background": False, "error": None, "incomplete_details": None, "model": asked.model, "output": [],
        "previous_response_id": None, "store": False, "truncation": "disabled", "usage": None, **asked.echo, **more,
    }  # fmt: skip


def ended(asked: Asked, rid: str, reply: Reply, output: list[Item], **more: Any) -> dict[str, Any]:
    """A response that was answered; whoever stopped early says why."""
    reason = INCOMPLETE.get(reply.finish_reason or "")
    if reason:
        output[-1]["status"] = "incomplete"
    return response(
        asked, rid, "incomplete" if reason else "completed", model=reply.model, output=output, usage=usage(reply.usage),
        incomplete_details={"reason": reason} if reason else None, completed_at=None if reason else int(time.time()),
        **more,
    )  # fmt: skip


def items(rid: str, reply: Reply) -> list[Item]:
    """Of a whole answer."""
    message, output = reply.message, list[Item]()

    def next_id(kind: str) -> str:
        return _id(kind, rid, len(output))

    if message and (message.reasoning or message.thinking_blocks):
        blocks = message.thinking_blocks
        output.append(spoken("reasoning", next_id("reasoning"), message.reasoning or None, blocks=blocks))
    if message and message.content:
        output.append(spoken("message", next_id("message"), message.content))
    for call in message.tool_calls if message else ():
        function = call["function"]
        output.append(called(next_id("function_call"), call["id"], function["name"], function["arguments"]))
    return output or [spoken("message", next_id("message"), "")]


def _id(kind: str, rid: str, n: int) -> str:
    return f"{PREFIXES[kind]}_{rid}_{n}"


def spoken(
    kind: Kind, item_id: str, text: str | None, status: str = "completed", blocks: Sequence[dict[str, Any]] = ()
) -> Item:
    """`text` is None: not a word yet. `blocks` are a provider's own record of its thinking."""
    content = [] if text is None else [_part(kind, text)]
    rest: Item = {"role": "assistant"} if kind == "message" else {"summary": []}
    seal = {"encrypted_content": sealed(blocks)} if blocks else {}
    return {"id": item_id, "type": kind, "status": status, **rest, "content": content, **seal}


def called(item_id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> Item:
    return {
        "id": item_id, "type": "function_call", "status": status, "call_id": call_id, "name": name,
        "arguments": arguments,
    }  # fmt: skip


def _part(kind: Kind, text: str) -> dict[str, Any]:
    more: Item = {"annotations": [], "logprobs": []} if kind == "message" else {}
    return {"type": TEXTS[kind], "text": text, **more}


def usage(counted: Usage | None) -> dict[str, Any] | None:
    if counted is None:
        return None
    return {
        "input_tokens": counted.tokens_in,
        "input_tokens_details": {
            "cached_tokens": counted.cached_tokens_in, "cache_write_tokens": counted.cache_write_tokens_in,
        },
        "output_tokens": counted.tokens_out,
        "output_tokens_details": {"reasoning_tokens": counted.reasoning_tokens_out},
        "total_tokens": counted.tokens_in + counted.tokens_out,
    }  # fmt: skip


@dataclass(slots=True)
class _Going:
    """An item that goes out."""

    index: int
    id: str
    kind: Kind | None
    """None: a call."""
    said: list[str] = field(default_factory=list)
    call_id: str = ""
    name: str = ""
    blocks: list[dict[str, Any]] = field(default_factory=list)
    status: str = "in_progress"

    def item(self) -> Item:
        text = "".join(self.said)
        if self.kind is None:
            return called(self.id, self.call_id, self.name, text, self.status)
        return spoken(self.kind, self.id, text if self.said else None, self.status, self.blocks)


class ResponseSpeech:
    """`response.created` to `response.completed`, `.incomplete` or `.failed`; numbered."""

    ping = sse.PING

    def __init__(self, asked: Asked, rid: str) -> None:
        self._asked = asked
        self._rid = rid
        self._created = int(time.time())
        self._number = 0
        self._all: list[_Going] = []
        self._speaking: _Going | None = None
        self._calls: dict[int, _Going] = {}

    def piece(self, chunk: Chunk) -> bytes:
        out = self._begin(chunk.model)
        if chunk.reasoning:
            out += self._say("reasoning", chunk.reasoning)
        if chunk.thinking_block:
            going, turned = self._turn_to("reasoning")
            going.blocks.append(chunk.thinking_block)
            out += turned
        if chunk.text:
            out += self._say("message", chunk.text)
        if chunk.tool_call:
            out += self._call(chunk.tool_call)
        return out

    def end(self, reply: Reply) -> bytes:
        out = self._begin(reply.model)
        if not self._all:
            out += self._say("message", "")
        last = "incomplete" if reply.finish_reason in INCOMPLETE else "completed"
        out += self._hush(last) + b"".join(self._call_done(call, last) for call in self._calls.values())
        output = [each.item() for each in self._all]
        whole = ended(self._asked, self._rid, reply, output, created_at=self._created)
        return out + self._event(f"response.{whole['status']}", response=whole, llm=within(reply))

    def error(self, error: Error, status: int) -> bytes:
        out = self._begin(None)
        said = {"code": CODES.get(status, "server_error"), "message": error.message}
        for each in self._all:
            each.status = "completed" if each.status == "completed" else "incomplete"
        output = [each.item() for each in self._all]
        failed = self._response("failed", error=said, output=output)
        return out + self._event(
            "response.failed", response=failed, llm=error.model_dump(mode="json", exclude_none=True)
        )

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        return response(self._asked, self._rid, status, created_at=self._created, **more)

    def _begin(self, model: str | None) -> bytes:
        if self._number:
            return b""
        begun = self._response("in_progress", model=model or self._asked.model)
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def _turn_to(self, kind: Kind) -> tuple[_Going, bytes]:
        """The item of that kind that goes on, or a new one."""
        going = self._speaking
        if going is not None and going.kind == kind:
            return going, b""
        out = self._hush()
        going = self._speaking = self._next(kind)
        return going, out + self._event("response.output_item.added", output_index=going.index, item=going.item())

    def _say(self, kind: Kind, text: str) -> bytes:
        going, out = self._turn_to(kind)
        if not going.said:
            out += self._event("response.content_part.added", **_within(going), part=_part(kind, ""))
        going.said.append(text)
        if not text:
            return out
        more: Item = {"logprobs": []} if kind == "message" else {}
        return out + self._event(f"response.{TEXTS[kind]}.delta", **_within(going), delta=text, **more)

    def _hush(self, status: str = "completed") -> bytes:
        """The end of what is being said, so that something else can follow."""
        going, self._speaking = self._speaking, None
        if going is None or going.kind is None:
            return b""
        going.status, out = status, b""
        item = going.item()
        for part in item["content"]:
            more: Item = {"logprobs": []} if going.kind == "message" else {}
            out += self._event(f"response.{TEXTS[going.kind]}.done", **_within(going), text=part["text"], **more)
            out += self._event("response.content_part.done", **_within(going), part=part)
        return out + self._event("response.output_item.done", output_index=going.index, item=item)

    def _call(self, piece: ToolCallChunk) -> bytes:
        out, going = self._hush(), self._calls.get(piece.index)
        if going is None:
            going = self._calls[piece.index] = self._next(None)
            going.call_id, going.name = piece.id or "", piece.name or ""
            out += self._event("response.output_item.added", output_index=going.index, item=going.item())
        going.call_id, going.name = going.call_id or piece.id or "", going.name or piece.name or ""
        going.said.append(piece.arguments)
        if piece.arguments:
            place = {"item_id": going.id, "output_index": going.index}
            out += self._event("response.function_call_arguments.delta", **place, delta=piece.arguments)
        return out

    def _call_done(self, going: _Going, status: str) -> bytes:
        going.status = status if going is self._all[-1] else "completed"
        item = going.item()
        place = {"item_id": going.id, "output_index": going.index}
        said = {"name": going.name, "arguments": item["arguments"]}
        return self._event("response.function_call_arguments.done", **place, **said) + self._event(
            "response.output_item.done", output_index=going.index, item=item
        )

    def _next(self, kind: Kind | None) -> _Going:
        n = len(self._all)
        going = _Going(n, _id(kind or "function_call", self._rid, n), kind)
        self._all.append(going)
        return going

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        event = sse.event({"type": kind, "sequence_number": self._number, **fields}, name=kind)
        self._number += 1
        return event


def _within(going: _Going) -> dict[str, Any]:
    return {"item_id": going.id, "output_index": going.index, "content_index": 0}
