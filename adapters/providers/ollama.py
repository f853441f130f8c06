"""Ollama's own dialect: `/api/chat`, always streamed, because only a stream shows that a model is alive."""

from collections.abc import Mapping
from typing import Any, Final, Self

from pydantic import ValidationError
from pydantic_core import to_json

from adapters.providers import Backend, Setup
from adapters.providers.embeddings import TEXTS_A_CALL, Made, Vectors, dimensions, in_batches
from adapters.providers.failures import interrupted, malformed, said_in_stream, usage_of
from adapters.providers.http import Remedies, Upstream
from adapters.providers.reading import Reading
from adapters.providers.tool_calls import parsed
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.base import Wire
from schemas.failure import FailureKind
from schemas.outcome import Answer
from schemas.request import Chat, ChatMessage, ReasoningEffort

UNKNOWN: Final = Backend()
FOREVER: Final = -1
KEPT_S: Final = 2 * 3600
"""How long a model stays that nobody uses, where no scheduler decides."""
THINK: Final[Mapping[ReasoningEffort | None, bool | str]] = {
    "none": False, "low": "low", "medium": "medium", "high": "high",
}  # fmt: skip
CANNOT_THINK: Final = "does not support thinking"


class _Function(Wire):
    name: str = ""
    arguments: dict[str, Any] | None = None


class _ToolCall(Wire):
    id: str | None = None
    function: _Function


class _Message(Wire):
    content: str | None = None
    thinking: str | None = None
    tool_calls: tuple[_ToolCall, ...] | None = None


class _Line(Wire):
    message: _Message | None = None
    done: bool = False
    done_reason: str | None = None
    error: Any = None
    # Whatever is 0 is left out.
    prompt_eval_count: Any = 0
    eval_count: Any = 0
    load_duration: Any = 0


class _Embedded(Wire):
    embeddings: tuple[tuple[float, ...], ...]
    prompt_eval_count: Any = 0
    load_duration: Any = 0


class Ollama:
    """An Ollama server and the models that it is expected to have."""

    def __init__(self, url: str | None, models: Mapping[str, Backend]) -> None:
        self._models = models
        self._upstream = Upstream(url)

    @classmethod
    def of(cls, setup: Setup) -> Self:
        return cls(setup.url, setup.models)

    async def chat(self, call: Call, progress: Progress) -> Answer:
        body = request_body(call.backend, self._models.get(call.backend, UNKNOWN), call.chat)

        async def ask() -> Answer:
            reading = _OllamaReading(progress)
            return await self._upstream.stream("/api/chat", body, call, reading, remedies=_remedies(call.backend))

        try:
            return await ask()
        except AttemptError as error:
            if not body.get("think") or CANNOT_THINK not in (error.failure.upstream or ""):
                raise
        del body["think"]
        return await ask()

    async def embed(self, call: Call) -> Answer:
        async def ask(chat: Chat) -> Answer:
            body = embed_body(call.backend, self._models.get(call.backend, UNKNOWN), chat)
            reading = Vectors(chat, _Embedded, _made)
            return await self._upstream.stream("/api/embed", body, call, reading, remedies=_remedies(call.backend))

        return await in_batches(call, TEXTS_A_CALL, ask)

    async def probe(self) -> dict[str, str | None]:
        on_disk = await self._upstream.listed("/api/tags", "models", "name")
        return {
            name: None
            if name in on_disk or f"{name}:latest" in on_disk
            else f"{name} is not on the disk of {self._upstream.name}: run `ollama pull {name}` there"
            for name in self._models
        }

    async def aclose(self) -> None:
        await self._upstream.aclose()


def _remedies(name: str) -> Remedies:
    return {
        404: f"run `ollama pull {name}` there",
        403: "it refuses this host name: use its IP address, or let it listen with OLLAMA_HOST=0.0.0.0",
    }


def embed_body(name: str, backend: Backend, chat: Chat) -> dict[str, Any]:
    """What `/api/embed` is sent."""
    return {
        "model": name,
        "input": chat.embed,
        **dimensions(chat, "dimensions"),
        # Or it would cut off the end of a long text without a word.
        "truncate": False,
        "options": load_options(backend),
        "keep_alive": keep_alive(backend),
    }


def _made(said: _Embedded) -> Made:
    return Made(said.embeddings, usage_of(said.prompt_eval_count, 0), _load_ms(said.load_duration))


def _load_ms(load_ns: object) -> float | None:
    return load_ns / 1e6 if type(load_ns) is int else None


def request_body(name: str, backend: Backend, chat: Chat) -> dict[str, Any]:
    """What `/api/chat` is sent. Raises AttemptError for what Ollama cannot do. What is None stays out."""
    options = {
        **load_options(backend),
        "num_predict": chat.max_tokens,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "stop": chat.stop or None,
        "seed": chat.seed,
    }
    body = {
        "model": name,
        "messages": _messages(chat.messages),
        "stream": True,
        # Or it would drop the oldest turns of a long chat without a word.
        "truncate": False,
        "options": {name: value for name, value in options.items() if value is not None},
        "keep_alive": keep_alive(backend),
        "think": THINK.get(chat.reasoning_effort),
        "tools": _tools(chat),
        "format": _format(chat.response_format),
    }
    return {name: value for name, value in body.items() if value is not None}


def load_options(backend: Backend) -> dict[str, int]:
    """Those that make Ollama load a model anew when they change: the same in whatever names the model."""
    return {} if backend.num_ctx is None else {"num_ctx": backend.num_ctx}


def keep_alive(backend: Backend) -> int:
    """In seconds. The last request's word holds, so all say the same."""
    return FOREVER if backend.resident else KEPT_S


def _unsupported(what: str) -> AttemptError:
    return AttemptError.of(FailureKind.UNSUPPORTED, f"Ollama {what}")


def _tools(chat: Chat) -> list[dict[str, Any]] | None:
    if chat.tool_choice not in (None, "auto", "none"):
        raise _unsupported("cannot be made to call a tool: tool_choice may be auto or none")
    return None if chat.tool_choice == "none" else chat.tools


def _format(wish: dict[str, Any] | None) -> Any:
    match wish:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return "json"
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
    raise _unsupported("knows the response formats text, json_object and json_schema with a schema")


def _messages(turns: tuple[ChatMessage, ...]) -> list[dict[str, Any]]:
    names: dict[str | None, str] = {}
    """By its id, the function of each call: a result must name it."""
    messages = []
    for turn in turns:
        message: dict[str, Any] = {
            "role": "system" if turn.role == "developer" else turn.role,
            "content": turn.text(),
        }
        if images := _images(turn):
            message["images"] = images
        if turn.tool_calls:
            message["tool_calls"] = [_tool_call(call) for call in turn.tool_calls]
            names |= {call.get("id"): call["function"]["name"] for call in message["tool_calls"]}
        if turn.role == "tool":
            message["tool_name"] = turn.name or names.get(turn.tool_call_id, "")
            message["tool_call_id"] = turn.tool_call_id or ""
        messages.append(message)
    return messages


def _images(turn: ChatMessage) -> list[str]:
    images = []
    for part in turn.content if isinstance(turn.content, list) else ():
        match part:
            case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
                head, comma, data = url.partition(";base64,")
                if not head.startswith("data:") or not comma:
                    raise _unsupported("takes images as data: URLs in base64 only")
                images.append(data)
            case {"text": str()}:
                pass
            case _:
                raise _unsupported(f"takes texts and images, not {str(part.get('type'))[:40]!r}")
    return images


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    call_id, name, arguments = parsed(call)
    return {"id": call_id, "function": {"name": name, "arguments": arguments}}


class _OllamaReading(Reading):
    """Lines of JSON, of which the last one says `done`. Without it there is no answer."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress)
        self._calls = 0
        self._last = _Line()

    def line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            said = _Line.decode(line)
        except ValidationError:
            raise malformed("Ollama sent a line that is not its JSON", line) from None
        if said.error is not None:
            raise said_in_stream(said.error, began=self.pieces > 0)
        if said.message is not None:
            self.on_reasoning(said.message.thinking)
            self.on_text(said.message.content)
            for call in said.message.tool_calls or ():
                arguments = to_json(call.function.arguments or {}).decode()
                self._calls += 1  # a call comes whole, in one line
                self.on_tool_call(self._calls - 1, arguments, call_id=call.id, name=call.function.name)
        if said.done:
            self._last = said
            self.complete = True

    def answer(self) -> Answer:
        if not self.complete:
            raise interrupted("Ollama's answer ended without its `done`")
        last = self._last
        return Answer(
            text=self.text,
            reasoning=self.reasoning,
            tool_calls=self.tool_calls(),
            finish_reason="length" if last.done_reason == "length" else "tool_calls" if self._calls else "stop",
            usage=usage_of(last.prompt_eval_count, last.eval_count),
            load_ms=_load_ms(last.load_duration),
        )
