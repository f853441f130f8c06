"""Cohere's own dialect: `/v2/chat`, streamed as server-sent events that end with `message-end`."""

from typing import Any, Final

from pydantic import Field, field_validator
from pydantic_core import to_json

from adapters.providers.embeddings import Made, Vectors, dimensions, in_batches
from adapters.providers.failures import interrupted, malformed, said_in_stream, usage_of
from adapters.providers.hosted import Hosted
from adapters.providers.sse import EventReading
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.base import Wire
from schemas.failure import FailureKind
from schemas.outcome import Answer, FinishReason
from schemas.request import Chat, ChatMessage, ReasoningEffort
from schemas.work import Usage

MODELS: Final = "/v1/models?page_size=1000"
TEXTS_A_CALL: Final = 96
MAX_TEMPERATURE: Final = 1
MAX_STOPS: Final = 5
MIN_P: Final = 0.01
MAX_P: Final = 0.99
TOOL_PLAN: Final = "tool_plan"
"""What the model said of its calls before it made them; Cohere wants it back with their results."""
FINISH_REASONS: Final[dict[str | None, FinishReason]] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
}
"""Any other, ERROR and TIMEOUT, is an answer given up."""
THINKING: Final[dict[ReasoningEffort | None, dict[str, Any]]] = {
    "none": {"type": "disabled"},
    "low": {"type": "enabled", "token_budget": 1024},
    "medium": {"type": "enabled", "token_budget": 8192},
    "high": {"type": "enabled"},
}


class _Content(Wire):
    text: str | None = None
    thinking: str | None = None


class _Function(Wire):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Wire):
    id: str | None = None
    function: _Function = _Function()


class _Message(Wire):
    content: _Content | None = None
    tool_plan: str | None = None
    tool_calls: _ToolCall | None = None

    @field_validator("content", "tool_calls", mode="before")
    @classmethod
    def _nothing_yet(cls, value: Any) -> Any:
        return value or None  # `message-start` has empty lists where all others have one object


class _Delta(Wire):
    message: _Message = _Message()
    error: Any = None
    finish_reason: str | None = None
    usage: Any = None


class _Event(Wire):
    type: str | None = None
    index: int | None = None
    delta: _Delta = _Delta()
    message: Any = None
    """An error's, in an event without a type."""


class _Floats(Wire):
    floats: tuple[tuple[float, ...], ...] = Field(alias="float")


class _Meta(Wire):
    billed_units: Any = None


class _Embedded(Wire):
    embeddings: _Floats
    meta: _Meta = _Meta()


class Cohere(Hosted):
    """One account at Cohere."""

    cut_off = "/v2"  # its list of models is not under it
    listed_at = (MODELS, "models", "name")

    async def chat(self, call: Call, progress: Progress) -> Answer:
        body = request_body(call.backend, call.chat)
        return await self._upstream.chat("/v2/chat", body, call, lambda: _CohereReading(progress), self._keys)

    async def embed(self, call: Call) -> Answer:
        async def ask(chat: Chat) -> Answer:
            body = embed_body(call.backend, chat)
            return await self._upstream.chat(
                "/v2/embed", body, call, lambda: Vectors(chat, _Embedded, _made), self._keys
            )

        return await in_batches(call, TEXTS_A_CALL, ask)


def embed_body(name: str, chat: Chat) -> dict[str, Any]:
    """What `/v2/embed` is sent. It wants to know what for: what is stored and what is searched with are alike here."""
    return {
        "model": name,
        "texts": chat.embed,
        "input_type": "search_document",
        "embedding_types": ["float"],
        **dimensions(chat, "output_dimension"),
        "truncate": "NONE",
    }


def _made(said: _Embedded) -> Made:
    counted = said.meta.billed_units.get("input_tokens") if isinstance(said.meta.billed_units, dict) else None
    return Made(said.embeddings.floats, usage_of(_count(counted), 0))


def request_body(name: str, chat: Chat) -> dict[str, Any]:
    """What `/v2/chat` is sent. Raises AttemptError for what Cohere cannot do. What is None stays out."""
    if (chat.temperature or 0) > MAX_TEMPERATURE:
        raise _unsupported(f"takes a temperature up to {MAX_TEMPERATURE}")
    if len(chat.stop) > MAX_STOPS:
        raise _unsupported(f"takes {MAX_STOPS} stop sequences at most")
    form = _response_format(chat.response_format)
    if form and chat.tools:
        raise _unsupported("cannot be held to a response format while it has tools")
    tools = [_tool(tool) for tool in chat.tools or ()]
    body = {
        "model": name,
        "messages": [_message(turn) for turn in chat.messages],
        "stream": True,
        "max_tokens": chat.max_tokens,
        "temperature": chat.temperature,
        # 1 means all tokens, which is refused; 0.99 is the nearest there is.
        "p": None if chat.top_p is None else min(max(chat.top_p, MIN_P), MAX_P),
        "stop_sequences": chat.stop or None,
        "seed": chat.seed,
        "tools": tools or None,
        "strict_tools": True if any(tool["function"].get("strict") for tool in chat.tools or ()) else None,
        "tool_choice": _tool_choice(chat.tool_choice) if tools else None,
        "response_format": form,
        "thinking": THINKING.get(chat.reasoning_effort),
    }
    return {name: value for name, value in body.items() if value is not None}


def _unsupported(what: str) -> AttemptError:
    return AttemptError.of(FailureKind.UNSUPPORTED, f"Cohere {what}")


def _bad_request(what: str) -> AttemptError:
    return AttemptError.of(FailureKind.BAD_REQUEST, what)


def _response_format(wish: dict[str, Any] | None) -> dict[str, Any] | None:
    match wish:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "json_object"}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return {"type": "json_object", "json_schema": schema}
    raise _unsupported("knows the response formats text, json_object and json_schema with a schema")


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    match tool:
        case {"type": "function", "function": {"name": str(name), **rest}}:
            # Without parameters OpenAI lets them out, Cohere does not.
            parameters = rest.get("parameters") or {"type": "object", "properties": {}}
            told = {"description": rest["description"]} if rest.get("description") else {}
            return {"type": "function", "function": {"name": name, **told, "parameters": parameters}}
        case {"type": "function"}:
            raise _bad_request("a tool needs function.name")
    raise _unsupported("knows no tools but functions")


def _tool_choice(wish: str | dict[str, Any] | None) -> str | None:
    match wish:
        case None | "auto":
            return None
        case "required":
            return "REQUIRED"
        case "none":
            return "NONE"
    raise _unsupported("cannot be made to call one tool: tool_choice may be auto, required or none")


def _message(turn: ChatMessage) -> dict[str, Any]:
    match turn.role:
        case "tool":
            if not turn.tool_call_id:
                raise _bad_request("a message of a tool needs tool_call_id")
            return {"role": "tool", "tool_call_id": turn.tool_call_id, "content": _content(turn)}
        case "assistant" if turn.tool_calls:
            plan = "".join(str(block[TOOL_PLAN]) for block in turn.thinking_blocks or () if TOOL_PLAN in block)
            message = {TOOL_PLAN: plan, "content": _content(turn)}
            said = {name: value for name, value in message.items() if value}
            return {"role": "assistant", "tool_calls": [_tool_call(call) for call in turn.tool_calls], **said}
        case role:
            return {"role": "system" if role == "developer" else role, "content": _content(turn)}


def _content(turn: ChatMessage) -> str | list[dict[str, Any]]:
    if not isinstance(turn.content, list):
        return turn.content or ""
    parts: list[dict[str, Any]] = []
    for part in turn.content:
        match part:
            case {"type": "text", "text": str(text)}:
                parts.append({"type": "text", "text": text})
            case {"type": "image_url", "image_url": dict() | str() as image} if turn.role == "user":
                parts.append({"type": "image_url", "image_url": {"url": image} if isinstance(image, str) else image})
            case _:
                what = str(part.get("type"))[:40]
                raise _unsupported(f"takes texts, and images from the user, not {what!r} from {turn.role}")
    return parts


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    match call:
        case {"id": str(call_id), "function": {"name": str(name), **rest}}:
            arguments = rest.get("arguments") or "{}"
            text = arguments if isinstance(arguments, str) else to_json(arguments).decode()
            return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}
    raise _bad_request("a tool call in messages needs id and function.name")


class _CohereReading(EventReading[_Event]):
    """Events until `message-end`."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress, _Event)
        self._plan: list[str] = []
        self._end = _Delta()

    def take(self, event: _Event) -> None:
        if event.type is None:
            if event.message is None:
                raise malformed("an event has no type", event.encode())
            raise said_in_stream(event.message, began=self.pieces > 0)
        message = event.delta.message
        if message.content is not None:
            self.on_reasoning(message.content.thinking)
            self.on_text(message.content.text)
        if message.tool_plan:
            self.on_reasoning(message.tool_plan)
            self._plan.append(message.tool_plan)
        if (call := message.tool_calls) is not None:
            if event.index is None:
                raise malformed("a tool call has no index", event.encode())
            self.on_tool_call(event.index, call.function.arguments, call_id=call.id, name=call.function.name)
        if event.type == "message-end":
            self._finish(event.delta)

    def _finish(self, end: _Delta) -> None:
        if end.error is not None or end.finish_reason not in FINISH_REASONS:
            said = end.error or f"it gave its answer up: {end.finish_reason}"
            raise said_in_stream(said, began=self.pieces > 0)
        self._end = end
        self.complete = True

    def answer(self) -> Answer:
        if (body := self.whole_body()) is not None:
            raise malformed("Cohere did not stream its answer", body.encode())
        if not self.complete:
            raise interrupted("Cohere's answer ended without its message-end")
        calls = self.tool_calls()
        reason = FINISH_REASONS[self._end.finish_reason]
        plan = "".join(self._plan)
        return Answer(
            text=self.text,
            reasoning=self.reasoning,
            tool_calls=calls,
            thinking_blocks=({"type": TOOL_PLAN, TOOL_PLAN: plan},) if plan else (),
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            usage=_usage(self._end.usage),
        )


def _usage(said: Any) -> Usage | None:
    """`billed_units`, as the bill follows them; `tokens` has Cohere's own prompt in it, which nobody pays."""
    match said:
        case {"billed_units": {"input_tokens": sent, "output_tokens": made}}:
            pass
        case {"tokens": {"input_tokens": sent, "output_tokens": made}}:
            pass
        case _:
            return None
    usage = usage_of(_count(sent), _count(made), _count(said.get("cached_tokens") or 0))
    # Nobody answers a chat with no tokens at all.
    return usage if usage and usage.tokens_in + usage.tokens_out else None


def _count(said: object) -> object:
    """Its API declares counts as floats."""
    return int(said) if isinstance(said, float) and said.is_integer() else said
