"""What `POST /v1/responses` is sent, in the words of chat completions: items as turns, flat tools as nested ones."""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic_core import from_json, to_json

from adapters.edge.openai_fields import ELSEWHERE, UNTAKEN, check_image, wrong

Turn = dict[str, Any]
Content = str | list[dict[str, Any]]

ROLES: Final = ("user", "assistant", "system", "developer")
TEXTS: Final = ("input_text", "output_text", "text")
STATELESS: Final = "nothing is kept between responses: send the whole conversation as `input`"


def turns(instructions: str | None, given: str | Sequence[dict[str, Any]]) -> list[Turn]:
    """The conversation. Raises ValueError that names the item."""
    said: list[Turn] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*said, {"role": "user", "content": given}]
    for n, item in enumerate(given):
        path = f"input.{n}"
        match item:
            case {"type": "function_call", "call_id": str(call_id), "name": str(name), "arguments": str(arguments)}:
                call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                _own_turn(said).setdefault("tool_calls", []).append(call)
            case {"type": "function_call_output", "call_id": str(call_id), "output": str() | [*_] as output}:
                content = _content(f"{path}.output", output)
                said.append({"role": "tool", "tool_call_id": call_id, "content": content})
            case {"type": "reasoning"}:
                _think(_own_turn(said), *_thought(path, item))
            case {"role": str(role), "content": str() | [*_] as content} if role in ROLES and _is_message(item):
                _say(said, role, _content(f"{path}.content", content))
            case _:
                raise _refused(path, item)
    return [turn for turn in said if turn.keys() - {"role", "reasoning_content", "thinking_blocks"}]


def _is_message(item: dict[str, Any]) -> bool:
    return item.get("type") in (None, "message")


def _own_turn(said: list[Turn]) -> Turn:
    """The model's turn that is going on: what it thought, said and called until somebody else has the word."""
    if not said or said[-1]["role"] != "assistant":
        said.append({"role": "assistant"})
    return said[-1]


def _say(said: list[Turn], role: str, content: Content) -> None:
    turn = _own_turn(said) if role == "assistant" else {}
    if turn.get("tool_calls") and "content" in turn:  # whose results must follow it at once
        turn["content"] = [*_parts(turn["content"]), *_parts(content)]
    elif turn and "content" not in turn:
        turn["content"] = content
    else:
        said.append({"role": role, "content": content})


def _parts(content: Content) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _think(turn: Turn, text: str, blocks: list[dict[str, Any]]) -> None:
    if text:
        turn["reasoning_content"] = turn.get("reasoning_content", "") + text
    if blocks:
        turn.setdefault("thinking_blocks", []).extend(blocks)


def _refused(path: str, item: dict[str, Any]) -> ValueError:
    match item:
        case {"type": "function_call"}:
            return wrong(path, "a function_call has call_id, name and, as JSON text, arguments")
        case {"type": "function_call_output"}:
            return wrong(path, "a function_call_output has call_id and output, a text or a list of parts")
        case {"type": str(kind)} if kind not in ("message", "item_reference"):
            return wrong(f"{path}.type", f"{kind[:40]!r} is not taken: send messages, function calls and their outputs")
        case {"id": str()} if "role" not in item:
            return wrong(path, STATELESS)
        case {"role": str(role)} if role in ROLES:
            return wrong(f"{path}.content", "it is a text or a list of parts")
    return wrong(f"{path}.role", f"a message is of one of {', '.join(ROLES)}")


def _content(path: str, said: str | list[Any]) -> Content:
    """A single text as such: every server takes that."""
    if isinstance(said, str):
        return said
    parts = [_part(f"{path}.{n}", part) for n, part in enumerate(said)]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(path: str, part: Any) -> dict[str, Any]:
    match part:
        case {"type": str(kind), "text": str(text)} if kind in TEXTS:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            check_image(f"{path}.image_url", url)
            detail = part.get("detail")
            return {"type": "image_url", "image_url": {"url": url, **({"detail": detail} if detail else {})}}
        case {"type": "input_image"}:
            raise wrong(f"{path}.image_url", "no files are kept here: send the image itself, by an https: or data: URL")
        case {"type": str(kind)} if kind in UNTAKEN:
            raise wrong(f"{path}.type", f"no provider here takes {UNTAKEN[kind]}; send input_text and input_image")
    raise wrong(path, "a part is an input_text or output_text with its text, or an input_image with its image_url")


def sealed(thinking_blocks: Sequence[dict[str, Any]]) -> str:
    """A provider's own record of its thinking, as the client is to send it back."""
    return b64encode(to_json(thinking_blocks)).decode()


def _thought(path: str, item: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Its text, and the provider's own record."""
    parts = item.get("content") or item.get("summary") or ()
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if (seal := item.get("encrypted_content")) is None:
        return "".join(texts), []
    try:
        blocks = from_json(b64decode(seal, validate=True))
    except (TypeError, ValueError):
        blocks = None
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise wrong(f"{path}.encrypted_content", "it is not of this edge's making; leave it out")
    return "".join(texts), blocks


def tools(given: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for n, tool in enumerate(given):
        match tool:
            case {"type": "function", "name": str(name)} if name:
                function = {
                    key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None
                }
                if not isinstance(function.get("parameters", {}), dict):
                    raise wrong(f"tools.{n}.parameters", "they are a JSON schema, an object")
                yield {"type": "function", "function": {"name": name, **function}}
            case {"type": "function"}:
                raise wrong(f"tools.{n}.name", "a function has a name")
            case {"type": str(kind)}:
                raise wrong(f"tools.{n}.type", f"{kind[:40]!r} {ELSEWHERE}")
            case _:
                raise wrong(f"tools.{n}.type", "it must be function")


def choice(given: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """As chat completions have it; what is none is refused there."""
    match given:
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": mode, "tools": [*allowed]}:
            flat = [{"function": {"name": tool.get("name")}} for tool in allowed if isinstance(tool, dict)]
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": flat}}
    return given


def response_format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    match given:
        case {"type": "json_schema", **rest} if isinstance(rest.get("schema"), dict):
            named = {name: value for name, value in rest.items() if value is not None}
            return {"type": "json_schema", "json_schema": named}
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return given
        case {"type": "json_schema"}:
            raise wrong("text.format.schema", "it is a JSON schema, an object")
    raise wrong("text.format.type", "it may be text, json_object or json_schema")
