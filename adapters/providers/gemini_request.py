"""What Gemini is asked: a chat in the words of Google's `GenerateContentRequest`."""

import re
from mimetypes import guess_type
from typing import Any, Final

from pydantic_core import from_json

from router.errors import AttemptError
from schemas.failure import FailureKind
from schemas.request import Chat, ChatMessage

MAX_STOPS: Final = 5
NEWEST: Final = 99.0
THINKING_BUDGETS: Final = {"none": 0, "low": 1024, "medium": 8192, "high": 24576}
"""Tokens; Google's own OpenAI-compatible endpoint reads the efforts so."""
THINKING_LEVELS: Final = {"none": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH"}
FOREIGN_CALL: Final = "skip_thought_signature_validator"
"""Stands in for the signature of a call that another model made: from version 3 on, a call without one is refused."""


def request_body(name: str, chat: Chat) -> dict[str, Any]:
    """What `streamGenerateContent` is sent. Raises AttemptError for what Gemini cannot do. What is None stays out."""
    version = _version(name)
    system = [
        part for turn in chat.messages if turn.role in {"system", "developer"} for part in _parts(turn, images=False)
    ]
    body = {
        "systemInstruction": {"parts": system} if system else None,
        "contents": _contents(chat.messages, signed=version >= 3),
        "tools": [{"functionDeclarations": [_declaration(tool) for tool in chat.tools]}] if chat.tools else None,
        "toolConfig": {"functionCallingConfig": _choice(chat.tool_choice)} if chat.tools and chat.tool_choice else None,
        "generationConfig": _generation(name, version, chat) or None,
    }
    return {name: value for name, value in body.items() if value is not None}


def _version(name: str) -> float:
    """2.5 of `gemini-2.5-flash`; a name without one, `gemini-flash-latest`, stands for the newest."""
    found = re.match(r"(?:models/)?gemini-(\d+(?:\.\d+)?)", name)
    return float(found[1]) if found else NEWEST


def _generation(name: str, version: float, chat: Chat) -> dict[str, Any]:
    if len(chat.stop) > MAX_STOPS:
        raise _unsupported(f"takes at most {MAX_STOPS} stop sequences")
    output = _format(chat.response_format)
    if output and chat.tools and version < 3:
        raise _unsupported(f"does not do JSON output and tools together with {name}")
    config = {
        "temperature": chat.temperature,
        "topP": chat.top_p,
        "maxOutputTokens": chat.max_tokens,
        "stopSequences": chat.stop or None,
        "seed": chat.seed,
        "thinkingConfig": _thinking(name, version, chat.reasoning_effort),
        **output,
    }
    return {name: value for name, value in config.items() if value is not None}


def _thinking(name: str, version: float, effort: str | None) -> dict[str, Any] | None:
    if effort in (None, "auto") or version < 2.5:
        return None  # as it likes; or it does not think, and refuses to be told how long
    if effort == "none" and "-pro" in name:
        raise _unsupported(f"cannot keep {name} from thinking: reasoning_effort may be low, medium or high")
    how_long = (
        {"thinkingLevel": THINKING_LEVELS[effort]} if version >= 3 else {"thinkingBudget": THINKING_BUDGETS[effort]}
    )
    return {**how_long, "includeThoughts": True} if effort != "none" else how_long


def _format(wish: dict[str, Any] | None) -> dict[str, Any]:
    match wish:
        case None | {"type": "text"}:
            return {}
        case {"type": "json_object"}:
            return {"responseMimeType": "application/json"}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"responseMimeType": "application/json", "responseJsonSchema": schema}
    raise _unsupported("knows the response formats text, json_object and json_schema with a schema")


def _declaration(tool: dict[str, Any]) -> dict[str, Any]:
    match tool:
        case {"type": "function", "function": {"name": str(name)} as function}:
            declared = {
                "name": name,
                "description": function.get("description"),
                "parametersJsonSchema": function.get("parameters"),
            }
            return {name: value for name, value in declared.items() if value is not None}
    raise _unsupported("takes tools of type function that have a name")


def _choice(wish: str | dict[str, Any] | None) -> dict[str, Any]:
    match wish:
        case "auto" | "none":
            return {"mode": wish.upper()}
        case "required" | "any":
            return {"mode": "ANY"}
        case {"type": "function", "function": {"name": str(name)}}:
            return {"mode": "ANY", "allowedFunctionNames": [name]}
    raise _unsupported("knows as tool_choice auto, none, required and a function's name")


def _contents(turns: tuple[ChatMessage, ...], *, signed: bool) -> list[dict[str, Any]]:
    contents: list[dict[str, Any]] = []
    names: dict[str | None, str] = {}
    """By its id, the function of each call: a result must name it."""
    answered = False
    for turn in turns:
        if turn.role in {"system", "developer"}:
            continue
        if turn.role == "tool":
            result = _result(turn, names)
            if answered:  # what was called in one turn is answered in one
                contents[-1]["parts"].append(result)
            else:
                contents.append({"role": "user", "parts": [result]})
        else:
            calls = [_call(call) for call in turn.tool_calls or ()]
            names |= {part["functionCall"].get("id"): part["functionCall"]["name"] for part in calls}
            if signed and calls:
                calls[0].setdefault("thoughtSignature", FOREIGN_CALL)
            # A turn without parts would be refused.
            if parts := _parts(turn) + calls:
                contents.append({"role": "model" if turn.role == "assistant" else "user", "parts": parts})
        answered = turn.role == "tool"
    return contents


def _parts(turn: ChatMessage, *, images: bool = True) -> list[dict[str, Any]]:
    if isinstance(turn.content, str):
        return [{"text": turn.content}] if turn.content else []
    parts: list[dict[str, Any]] = []
    for part in turn.content or ():
        match part:
            case {"image_url": {"url": str(url)} | str(url)} if images:
                parts.append(_image(url))
            case {"file": {"file_data": str(url)}} if images and url.startswith("data:"):
                parts.append(_image(url))
            case {"text": str(text)} | {"refusal": str(text)}:
                parts += [{"text": text}] if text else []
            case _:
                raise _unsupported(f"takes texts and, from users, images and files, not {str(part.get('type'))[:40]!r}")
    return parts


def _image(url: str) -> dict[str, Any]:
    head, comma, data = url.partition(";base64,")
    if head.startswith("data:") and comma:
        return {"inlineData": {"mimeType": head[5:].partition(";")[0], "data": data}}
    if not url.startswith("https://"):
        raise _unsupported("takes images as data: URLs in base64 or from https: URLs")
    kind = guess_type(url.partition("?")[0])[0]
    return {"fileData": {"fileUri": url, **({"mimeType": kind} if kind else {})}}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI has the arguments as a string of JSON, Gemini as an object."""
    match call:
        case {"function": {"name": str(name)} as function}:
            arguments = function.get("arguments") or "{}"
            parsed = _object(arguments) if isinstance(arguments, str) else arguments
        case _:
            name, parsed = "", None
    if not isinstance(parsed, dict):
        raise _wrong("a tool call in messages needs function.name and, as JSON, function.arguments")
    part: dict[str, Any] = {"functionCall": {"name": name, "args": parsed}}
    if call.get("id"):
        part["functionCall"]["id"] = call["id"]
    match call:
        case {"extra_content": {"google": {"thought_signature": str(signature)}}}:
            part["thoughtSignature"] = signature
    return part


def _result(turn: ChatMessage, names: dict[str | None, str]) -> dict[str, Any]:
    name = names.get(turn.tool_call_id) or turn.name
    if not name:
        raise _wrong("a tool message needs the tool_call_id of a call before it")
    text = "\n".join(part["text"] for part in _parts(turn, images=False))
    parsed = _object(text)
    response = {"name": name, "response": {"output": text} if parsed is None else parsed}
    return {"functionResponse": {**response, "id": turn.tool_call_id} if turn.tool_call_id else response}


def _object(text: str) -> dict[str, Any] | None:
    try:
        parsed = from_json(text)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _unsupported(what: str) -> AttemptError:
    return AttemptError.of(FailureKind.UNSUPPORTED, f"Gemini {what}")


def _wrong(what: str) -> AttemptError:
    return AttemptError.of(FailureKind.BAD_REQUEST, what)
