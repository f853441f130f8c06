"""A chat in Anthropic's words. What its Messages API cannot do is told before the call."""

import re
from collections.abc import Iterator
from typing import Any, Final

from adapters.providers.tool_calls import parsed
from router.errors import AttemptError
from schemas.failure import FailureKind
from schemas.request import Chat, ChatMessage

Block = dict[str, Any]

DEFAULT_MAX_TOKENS: Final = 16_000
"""Sent when the client sets no limit, since the API demands one: no model that is still served allows fewer."""
THINKING_TOKENS: Final = {"low": 2_000, "medium": 8_000, "high": 16_000}
"""For models that think by a budget of tokens. It counts against `max_tokens`."""
MIN_THINKING_TOKENS: Final = 1_024
ADAPTIVE_SINCE: Final = (4, 6)
"""From this generation on a model is told how hard to think, before it how many tokens to think with."""
OWN_SAMPLING_SINCE: Final = (4, 7)
"""From this generation on a model takes no temperature and no top_p but 1."""
ALWAYS_THINKING: Final = re.compile(r"\b(fable|mythos)\b")
_GENERATION = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?!\d)(?:[-.](\d{1,2})(?!\d))?")


def request_body(name: str, chat: Chat) -> dict[str, Any]:
    """What `/messages` is sent. Raises AttemptError for what Anthropic cannot do. What is None stays out."""
    limit = chat.max_tokens or DEFAULT_MAX_TOKENS
    thinking, effort = _thinking(name, chat, limit)
    if thinking is not None and "budget_tokens" in thinking and chat.max_tokens is None:
        limit += thinking["budget_tokens"]
    if chat.seed is not None:
        raise unsupported("takes no seed")
    config = {"effort": effort, "format": _format(chat.response_format)}
    config = {key: value for key, value in config.items() if value is not None}
    _check_sampling(name, chat, thinks=(thinking or {}).get("type") in {"adaptive", "enabled"})
    body = {
        "model": name,
        "max_tokens": limit,
        "system": [*_system(chat.messages)] or None,
        "messages": _messages(chat.messages),
        "stream": True,
        "stop_sequences": chat.stop or None,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "thinking": thinking,
        "output_config": config or None,
        "tools": [_tool(tool) for tool in chat.tools or ()] or None,
        "tool_choice": _tool_choice(chat) if chat.tools else None,
    }
    return {key: value for key, value in body.items() if value is not None}


def unsupported(what: str) -> AttemptError:
    return AttemptError.of(FailureKind.UNSUPPORTED, f"Anthropic {what}")


def generation(name: str) -> tuple[int, int] | None:
    """`claude-haiku-4-5-20251001` is (4, 5); None for a name that tells none, which is taken for a current model."""
    found = _GENERATION.search(name)
    return (int(found[1]), int(found[2] or 0)) if found else None


def _thinking(name: str, chat: Chat, limit: int) -> tuple[Block | None, str | None]:
    """The configuration of thinking, and the effort beside it."""
    effort = chat.reasoning_effort
    if effort is None:
        return None, None
    if effort == "none":
        if ALWAYS_THINKING.search(name):
            raise unsupported(f"cannot keep {name} from thinking: leave reasoning_effort none out")
        return {"type": "disabled"}, None
    adaptive = (generation(name) or ADAPTIVE_SINCE) >= ADAPTIVE_SINCE
    if effort == "auto":
        return ({"type": "adaptive"} if adaptive else None), None
    if adaptive:
        return {"type": "adaptive"}, effort
    budget = THINKING_TOKENS[effort] if chat.max_tokens is None else min(THINKING_TOKENS[effort], limit // 2)
    if budget < MIN_THINKING_TOKENS:
        raise unsupported(f"lets {name} think with max_tokens of at least {2 * MIN_THINKING_TOKENS} only")
    if chat.tools and chat.tool_choice not in (None, "auto", "none"):
        raise unsupported(f"cannot force {name} to call a tool while it thinks")
    return {"type": "enabled", "budget_tokens": budget}, None


def _check_sampling(name: str, chat: Chat, *, thinks: bool) -> None:
    if chat.temperature is not None and chat.temperature > 1:
        raise unsupported("takes a temperature of 1 at most")
    if (generation(name) or (0, 0)) >= OWN_SAMPLING_SINCE and (
        chat.temperature not in (None, 1) or chat.top_p not in (None, 1)
    ):
        raise unsupported(f"lets nobody set temperature or top_p of {name}")
    if thinks and chat.temperature not in (None, 1):
        raise unsupported("takes no temperature while a model thinks")


def _format(wish: dict[str, Any] | None) -> Block | None:
    match wish:
        case None | {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"type": "json_schema", "schema": schema}
    raise unsupported("knows the response formats text, and json_schema with a schema")


def _tool(tool: dict[str, Any]) -> Block:
    match tool:
        case {"type": "function", "function": {"name": str(name), **function}}:
            block: Block = {
                "name": name,
                "description": function.get("description"),
                "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
                "strict": function.get("strict") or None,
                "cache_control": tool.get("cache_control") or function.get("cache_control"),
            }
            return {key: value for key, value in block.items() if value is not None}
    raise unsupported(f"takes tools that are functions, not {str(tool.get('type'))[:40]!r}")


def _tool_choice(chat: Chat) -> Block | None:
    one = {"disable_parallel_tool_use": True} if chat.parallel_tool_calls is False else {}
    match chat.tool_choice:
        case None:
            return {"type": "auto", **one} if one else None
        case "none":
            return {"type": "none"}
        case "auto":
            return {"type": "auto", **one}
        case "required":
            return {"type": "any", **one}
        case {"type": "function", "function": {"name": str(name)}}:
            return {"type": "tool", "name": name, **one}
    raise unsupported("knows the tool choices auto, none, required and a function by its name")


def _system(turns: tuple[ChatMessage, ...]) -> Iterator[Block]:
    for turn in turns:
        if turn.role in {"system", "developer"}:
            for block in _blocks(turn.content):
                if block["type"] != "text":
                    raise unsupported("takes nothing but text as a system message")
                yield block


def _messages(turns: tuple[ChatMessage, ...]) -> list[Block]:
    """User and assistant by turns, as the API wants them: turns of one role that follow each other are one."""
    messages: list[Block] = []
    for turn in turns:
        if turn.role in {"system", "developer"} or not (blocks := _turn(turn)):
            continue
        role = "assistant" if turn.role == "assistant" else "user"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": role, "content": blocks})
    if not messages:
        raise unsupported("wants a user's message besides the system's")
    return messages


def _turn(turn: ChatMessage) -> list[Block]:
    if turn.role == "tool":
        if not turn.tool_call_id:
            raise AttemptError.of(FailureKind.BAD_REQUEST, "a tool message needs the tool_call_id of its call")
        return [{"type": "tool_result", "tool_use_id": turn.tool_call_id, "content": [*_blocks(turn.content)]}]
    if turn.role == "user":
        return [*_blocks(turn.content)]
    # Signed, so nobody but the API can read it, and it must stand before the calls it led to.
    thoughts = [block for block in turn.thinking_blocks or () if block.get("type") in {"thinking", "redacted_thinking"}]
    calls = [_tool_use(call) for call in turn.tool_calls or ()]
    return [*thoughts, *_blocks(turn.content), *calls]


def _tool_use(call: dict[str, Any]) -> Block:
    call_id, name, arguments = parsed(call)
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


def _blocks(content: str | list[dict[str, Any]] | None) -> Iterator[Block]:
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
        match part:
            case {"type": "text", "text": str(text)}:
                if not text.strip():
                    continue  # it would be refused
                block: Block = {"type": "text", "text": text}
            case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
                block = {"type": "image", "source": _image(url)}
            case {"type": "file", "file": {"file_data": str(url), **named}}:
                block = {"type": "document", "source": _pdf(url)}
                block |= {"title": named["filename"]} if "filename" in named else {}
            case _:
                raise unsupported(f"takes texts, images and files, not {str(part.get('type'))[:40]!r}")
        if cache_control := part.get("cache_control"):
            block["cache_control"] = cache_control
        yield block


def _image(url: str) -> Block:
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    media_type, data = _inline(url)
    if not media_type.startswith("image/"):
        raise unsupported("takes images as http(s) URLs, or as data: URLs in base64")
    if media_type not in {"image/jpeg", "image/png", "image/gif", "image/webp"}:
        raise unsupported(f"takes images as JPEG, PNG, GIF or WebP, not {media_type[:40]!r}")
    return {"type": "base64", "media_type": media_type, "data": data}


def _pdf(url: str) -> Block:
    media_type, data = _inline(url)
    if media_type != "application/pdf":
        raise unsupported("takes files as PDF, in data: URLs in base64")
    return {"type": "base64", "media_type": media_type, "data": data}


def _inline(url: str) -> tuple[str, str]:
    """Media type and base64 of a data: URL; empty ones of any other."""
    head, comma, data = url.partition(";base64,")
    return (head.removeprefix("data:").partition(";")[0], data) if head.startswith("data:") and comma else ("", "")
