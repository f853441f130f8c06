"""Anthropic's `POST /v1/messages`, plain or streamed, and its `count_tokens`.

What only Anthropic itself has is read over, so that any model can answer; what would be answered wrongly without it is
refused: tools that run at Anthropic, documents that are no text.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from adapters.edge.anthropic_request import effort, parallel_tool_calls, response_format, tool_choice, tools, turns
from adapters.edge.anthropic_speech import CallIds, MessageSpeech, stopped, usage
from adapters.edge.door import Asked, Shape, placed
from adapters.edge.wishes import Wishes, request, with_preferences
from schemas.policy import Policy
from schemas.reply import Reply, ReplyMessage
from schemas.request import MAX_DEADLINE_MS, Objects, Texts

SESSION: Final = "x-claude-code-session-id"
PATIENCE: Final = "x-stainless-timeout"
"""Seconds that the vendor's own clients wait for an answer."""
_NO_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")


class OutputConfig(BaseModel):
    format: dict[str, Any] | None = None


class MessagesRequest(Wishes):
    """What is not here is kept out: an unknown field is no error."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra={"required": ["messages"]})

    model: str | None = None
    """An alias, a model or a capability of the policy, a backend's own name, or `auto`."""
    messages: Objects = Field(min_length=1)
    system: str | Objects | None = None
    max_tokens: int | None = None
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: Texts | None = None
    tools: Objects | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    metadata: dict[str, Any] | None = None


class Messages:
    """The door."""

    shape: Shape = "anthropic"

    def read(self, body: bytes, headers: Mapping[str, str], policy: Policy) -> Asked:
        said = MessagesRequest.said(body, headers)
        capability, model = placed(said.model, said, policy)
        preferences = with_preferences(
            said,
            {
                "max_tokens": said.max_tokens,
                "temperature": said.temperature,
                "top_p": said.top_p,
                "stop": said.stop_sequences or None,
                "reasoning_effort": effort(said.thinking),
            },
        )
        asked = request(
            said, messages=turns(said.system, said.messages), model=model, preferences=preferences,
            stream=said.stream and not said.buffered, tools=tools(said.tools),
            tool_choice=tool_choice(said.tool_choice), parallel_tool_calls=parallel_tool_calls(said.tool_choice),
            response_format=response_format(said.output_config.format if said.output_config else None),
            metadata=_metadata(said.metadata, headers), deadline_ms=said.deadline_ms or _patience_ms(headers),
        )  # fmt: skip
        return Asked(asked, capability, sse=said.stream, model=said.model or "auto")

    def answer(self, asked: Asked, reply: Reply) -> dict[str, Any]:
        return {
            "id": f"msg_{reply.request_id}",
            "type": "message",
            "role": "assistant",
            "model": reply.model,
            "content": _content(asked, reply, reply.message) if reply.message else [],
            **stopped(reply),
            "usage": usage(reply.usage),
        }

    def speech(self, asked: Asked, rid: str) -> MessageSpeech:
        return MessageSpeech(asked.model, rid, _call_ids(asked, rid), shows_thinking=_shows_thinking(asked))


def _shows_thinking(asked: Asked) -> bool:
    """Whoever did not ask for thoughts takes the first block for the answer."""
    return asked.request.preferences.reasoning_effort not in (None, "none")


def _call_ids(asked: Asked, rid: str) -> CallIds:
    """Clients find a result by the id of its call in the whole conversation; some servers number those of each answer
    anew, and some use characters that Anthropic knows in no id."""
    earlier = {call.get("id") for turn in asked.request.messages or () for call in turn.tool_calls or ()}

    def call_id(given: str | None, index: int) -> str:
        plain = _NO_ID.sub("_", given or "")
        return plain if plain and plain not in earlier else f"toolu_{rid}_{index}"

    return call_id


def _content(asked: Asked, reply: Reply, message: ReplyMessage) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if _shows_thinking(asked):
        content += [
            block for block in message.thinking_blocks if block.get("type") in {"thinking", "redacted_thinking"}
        ]
        if message.reasoning and not content:
            content.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
    if message.content:
        content.append({"type": "text", "text": message.content})
    call_id = _call_ids(asked, reply.request_id)
    for index, call in enumerate(message.tool_calls):
        function = call.get("function", {})
        given = _input(function.get("arguments") or "{}")
        called = {"id": call_id(call.get("id"), index), "name": function.get("name"), "input": given}
        content.append({"type": "tool_use", **called})
    return content


def _input(arguments: str) -> dict[str, Any]:
    """Half of broken arguments might be carried out: a tool is to refuse them, and say so to the model."""
    try:
        given = from_json(arguments)
    except ValueError:
        given = None
    return given if isinstance(given, dict) else {"unreadable_arguments": arguments}


def _metadata(said: dict[str, Any] | None, headers: Mapping[str, str]) -> dict[str, Any] | None:
    session = headers.get(SESSION)
    return {**(said or {}), "session_id": session} if session else said


def _patience_ms(headers: Mapping[str, str]) -> int | None:
    """Until when the client will listen; None when it does not say."""
    try:
        seconds = float(headers.get(PATIENCE, ""))
    except ValueError:
        return None
    return min(int(seconds * 1000), MAX_DEADLINE_MS) if 1 <= seconds < float("inf") else None
