"""What OpenAI's doors share: the types of their fields, and words for what cannot be had here."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

Flag = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Tokens = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Temperature = Annotated[float, Field(strict=True, ge=0, le=2)]
TopP = Annotated[float, Field(strict=True, gt=0, le=1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

EFFORTS: Final = {"minimal": "low", "xhigh": "high", "max": "high"}
"""OpenAI's words for what others call otherwise."""
LOGPROBS: Final = "not supported: no provider's token probabilities travel on the bus; leave it out"
ELSEWHERE: Final = "runs at OpenAI's own servers only; declare a function, and run it yourself"
UNTAKEN: Final = {
    "input_audio": "audio", "output_audio": "audio", "audio": "audio", "file": "a file", "input_file": "a file",
}  # fmt: skip
"""Parts of content that no provider here takes."""


def only(*harmless: Any, because: str) -> AfterValidator:
    """For a field that may be there as long as it asks for nothing."""

    def check(value: Any) -> Any:
        if value not in harmless:
            raise ValueError(because)
        return value

    return AfterValidator(check)


def wrong(path: str, words: str) -> ValueError:
    """What stands at that path is refused, in the form of pydantic's own refusals."""
    return ValueError(f"{path}: {words}")


def effort(said: Effort | None) -> str | None:
    return said and EFFORTS.get(said, said)


def check_said(field: str, messages: Sequence[Mapping[str, Any]]) -> None:
    if not any(message.get("content") or message.get("tool_calls") for message in messages):
        raise wrong(field, "nobody says anything there")


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """What the bus would let pass and no provider understands."""
    for n, message in enumerate(messages):
        path = f"messages.{n}"
        if message.get("function_call") is not None:
            raise wrong(f"{path}.function_call", "the older form is not taken: use tool_calls, and tool messages")
        content, calls = message.get("content"), message.get("tool_calls")
        for m, part in enumerate(content if isinstance(content, list) else ()):
            check_part(f"{path}.content.{m}", part)
        for m, call in enumerate(calls if isinstance(calls, list) else ()):
            match call:
                case {"function": {"name": str(), "arguments": str()}}:
                    pass
                case _:
                    raise wrong(
                        f"{path}.tool_calls.{m}", "it needs function.name and, as JSON text, function.arguments"
                    )
        if message.get("role") == "tool" and not isinstance(message.get("tool_call_id"), str):
            raise wrong(f"{path}.tool_call_id", "a tool message names the call that it answers")


def check_part(path: str, part: Any) -> None:
    match part:
        case {"type": "text", "text": str()} | {"type": "refusal", "refusal": str()}:
            pass
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            check_image(f"{path}.image_url", url)
        case {"type": "text" | "refusal" | "image_url" as kind}:
            raise wrong(
                f"{path}.{kind}", f"a part of type {kind} has it, {'with a url' if kind == 'image_url' else 'a text'}"
            )
        case {"type": str(kind)} if kind in UNTAKEN:
            raise wrong(f"{path}.type", f"no provider here takes {UNTAKEN[kind]}; send texts and images")
        case {"type": str()}:
            pass  # some server may know it; the others' adapters refuse it
        case _:
            raise wrong(f"{path}.type", "each part of a content says what it is: text, image_url")


def check_image(path: str, url: str) -> None:
    head, base64, _ = url[:128].partition(";base64,")
    if not (url.startswith(("https://", "http://")) or (head.startswith("data:image/") and base64)):
        raise wrong(path, "an image is an https: URL, or a data:image/...;base64, URL")


def check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    for n, tool in enumerate(tools):
        match tool:
            case {"type": "function", "function": {"name": str(name)} as function} if name:
                if not isinstance(function.get("parameters", {}), dict | None):
                    raise wrong(f"tools.{n}.function.parameters", "they are a JSON schema, an object")
            case {"type": "function"}:
                raise wrong(f"tools.{n}.function.name", "a function has a name")
            case {"type": str(kind)}:
                raise wrong(f"tools.{n}.type", f"{kind[:40]!r} {ELSEWHERE}")
            case _:
                raise wrong(f"tools.{n}.type", "it must be function")


def chosen(
    choice: str | dict[str, Any] | None, tools: list[dict[str, Any]] | None
) -> tuple[str | dict[str, Any] | None, list[dict[str, Any]] | None]:
    """The choice and the tools to choose from; allowed ones are all that a provider is told of."""
    match choice:
        case None | "auto" | "none" | "required" | {"type": "function", "function": {"name": str()}}:
            return choice, tools or None
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [*allowed]}}:
            names = [name_of(each) for each in allowed]
            if kept := [tool for tool in tools or () if name_of(tool) in names]:
                return mode, kept
            raise wrong("tool_choice", "none of the allowed tools is among tools")
    raise wrong(
        "tool_choice", "it may be auto, none, required, a function by its name, or allowed_tools that are functions"
    )


def name_of(tool: Any) -> str | None:
    match tool:
        case {"function": {"name": str(name)}}:
            return name
    return None


def check_format(wish: dict[str, Any] | None) -> None:
    match wish:
        case None | {"type": "text" | "json_object"} | {"type": "json_schema", "json_schema": {"schema": dict()}}:
            pass
        case {"type": "json_schema"}:
            raise wrong("response_format.json_schema", "it has a name, and its schema under `schema`")
        case _:
            raise wrong("response_format.type", "it may be text, json_object or json_schema")
