"""Anthropic's turns, tools and wishes in the bus's words, which are OpenAI's."""

from collections.abc import Iterator
from typing import Any, Final

from pydantic_core import to_json

Block = dict[str, Any]

EFFORTS: Final = ((4_000, "low"), (12_000, "medium"))
"""Up to how many tokens of thinking an effort is meant; more is a high one."""


def turns(system: str | list[Block] | None, messages: list[Block]) -> list[Block]:
    """`ChatMessage`s. Raises ValueError for what no model can be given."""
    said: list[Block] = []
    for message in [{"role": "system", "content": system or ""}, *messages]:
        blocks = _blocks(message.get("content"))
        if message.get("role") == "assistant":
            said += _assistant(blocks)
        elif message.get("role") == "user":
            said += _user(blocks)
        elif content := _joined([*_parts(blocks)]):
            said.append({"role": message.get("role"), "content": content})
    return said


def _blocks(content: Any) -> list[Block]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and all(isinstance(block, dict) for block in content):
        return content
    raise ValueError("messages: content is text or a list of blocks")


def _assistant(blocks: list[Block]) -> Iterator[Block]:
    """Thinking without a signature was another model's, and is of use to nobody; a turn of nothing else is left out."""
    thoughts = [thought for block in blocks if (thought := _thought(block))]
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    parts = [part for part in _parts(blocks) if part["type"] == "text"]
    if thoughts or calls or parts:
        turn = {"role": "assistant", "content": _joined(parts) if parts or calls else ""}
        yield {**turn, "tool_calls": calls or None, "thinking_blocks": thoughts or None}


def _thought(block: Block) -> Block | None:
    match block:
        case {"type": "thinking", "thinking": str(words), "signature": str(signature)} if signature:
            return {"type": "thinking", "thinking": words, "signature": signature}
        case {"type": "redacted_thinking", "data": str(data)}:
            return {"type": "redacted_thinking", "data": data}
    return None


def _user(blocks: list[Block]) -> Iterator[Block]:
    """First the results of tools. An image in one of them follows in the user's own words: few others take it there."""
    seen: list[Block] = []
    for block in blocks:
        if block.get("type") == "tool_result":
            parts = [*_parts(block.get("content") or [], result=True)]
            shown = [part for part in parts if part["type"] != "text"]
            text = "\n".join(part["text"] for part in parts if part["type"] == "text")
            text = text or ("[see below]" if shown else "")
            seen += shown
            content = f"Error: {text}" if block.get("is_error") else text
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _marked(content, block)}
    if parts := [*seen, *_parts(blocks)]:
        yield {"role": "user", "content": _joined(parts)}


def _call(block: Block) -> Block:
    function = {"name": block.get("name"), "arguments": to_json(block.get("input") or {}).decode()}
    return {"id": block.get("id"), "type": "function", "function": function}


def _parts(content: str | list[Block], *, result: bool = False) -> Iterator[Block]:
    """Texts, images and documents. Of what is unknown its text; in the `result` of a tool, which nobody can mend, at
    least a note."""
    for block in _blocks(content):
        match block:
            case {"type": "thinking" | "redacted_thinking" | "tool_use" | "tool_result"}:
                pass
            case {"type": "image", "source": dict(source)} if url := _url(source):
                yield _with_mark({"type": "image_url", "image_url": {"url": url}}, block)
            case {"type": "document", "source": {"type": "text", "data": str(text)}} | {"text": str(text)}:
                if text:
                    yield _with_mark({"type": "text", "text": text}, block)
            case {"type": "document", "source": {"type": "content", "content": str() | list() as inner}}:
                yield from _parts(inner, result=result)
            case {"type": "search_result", "content": list(inner)}:
                yield from _parts(inner, result=result)
            case {"type": "document", "source": {"type": "base64"} as source} if url := _url(source):
                file = {"file_data": url, "filename": str(block.get("title") or "document.pdf")}
                yield _with_mark({"type": "file", "file": file}, block)
            case {"type": "image" | "document" as kind} if not result:
                raise ValueError(f"messages: the source of a {kind} is base64, or the url of an image")
            case _ if result:
                note = f"[{str(block.get('type'))[:40]} left out: it is neither text nor image nor document]"
                yield {"type": "text", "text": note}


def _url(source: Block) -> str | None:
    match source:
        case {"type": "url", "url": str(url)}:
            return url
        case {"type": "base64", "media_type": str(kind), "data": str(data)}:
            return f"data:{kind};base64,{data}"
    return None


def _with_mark(part: Block, block: Block) -> Block:
    """What Anthropic is to cache: lost on the way, every turn of a long session would cost its full price."""
    mark = block.get("cache_control")
    return {**part, "cache_control": mark} if isinstance(mark, dict) else part


def _marked(text: str, block: Block) -> str | list[Block]:
    return _joined([_with_mark({"type": "text", "text": text}, block)]) or ""


def _joined(parts: list[Block]) -> str | list[Block] | None:
    """As plain as it can be said: not every server takes a list."""
    if all(part.keys() == {"type", "text"} for part in parts):
        return "\n\n".join(part["text"] for part in parts) or None
    return parts


def tools(said: list[Block] | None) -> list[Block] | None:
    """Raises ValueError for a tool that only Anthropic can run: without it an answer would be made up."""
    made = []
    for tool in said or ():
        if "input_schema" not in tool:
            kind = str(tool.get("type") or tool.get("name"))[:64]
            raise ValueError(f"tools: {kind!r} has no input_schema: tools that run at Anthropic are not supported")
        function = {
            "name": tool.get("name"),
            "description": tool.get("description"),
            "parameters": tool["input_schema"],
            "strict": tool.get("strict"),
        }
        known = {name: value for name, value in function.items() if value is not None}
        made.append(_with_mark({"type": "function", "function": known}, tool))
    return made or None


def tool_choice(said: Block | None) -> str | Block | None:
    match said:
        case None:
            return None
        case {"type": "auto" | "none" as choice}:
            return str(choice)
        case {"type": "any"}:
            return "required"
        case {"type": "tool", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
    raise ValueError("tool_choice: its type is auto, any, none, or tool with a name")


def parallel_tool_calls(said: Block | None) -> bool | None:
    return False if said and said.get("disable_parallel_tool_use") is True else None


def effort(thinking: Block | None) -> str | None:
    """A budget is a demand; `adaptive` leaves it to the model, which may be one that cannot think."""
    match thinking:
        case None:
            return None
        case {"type": "disabled"}:
            return "none"
        case {"type": "adaptive"}:
            return "auto"
        case {"type": "enabled", "budget_tokens": int(budget)}:
            return next((name for most, name in EFFORTS if budget <= most), "high")
    raise ValueError("thinking: its type is disabled, adaptive, or enabled with budget_tokens")


def response_format(schema_format: Block | None) -> Block | None:
    match schema_format:
        case None:
            return None
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    raise ValueError("output_config.format: its type is json_schema, with a schema")
