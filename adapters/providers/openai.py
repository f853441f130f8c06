"""Any server that speaks OpenAI's `/chat/completions`, streamed as server-sent events."""

from collections.abc import Sequence
from typing import Any, Final

from adapters.providers.embeddings import TEXTS_A_CALL, Made, Vectors, dimensions, in_batches
from adapters.providers.failures import interrupted, malformed, said_in_stream, usage_of
from adapters.providers.hosted import Hosted
from adapters.providers.sse import DONE, EventReading
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.base import Wire
from schemas.failure import FailureKind
from schemas.outcome import Answer, FinishReason
from schemas.request import Chat, ChatMessage
from schemas.work import Usage

THOUGHT: Final = "reasoning_content"
"""Some servers want it back with the turn, some refuse it."""
OPENAI_HOST: Final = "api.openai.com"
PATH: Final = "/chat/completions"
EFFORT: Final = "reasoning_effort"
FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
"""Any other, `eos` and whatever servers call it, is a stop."""
BROKEN_OFF: Final = frozenset({"error", "abort", "aborted", "cancelled", "insufficient_system_resource"})
"""Servers' words for an answer that they did not finish."""


class _Function(Wire):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Wire):
    index: int | None = None
    id: str | None = None
    function: _Function = _Function()


class _Message(Wire):
    """A whole message, or a piece of one."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: tuple[_ToolCall, ...] | None = None


class _Choice(Wire):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    # What vLLM and SGLang say beside it: the sequence, or the token, that ended the answer.
    stop_reason: Any = None
    matched_stop: Any = None


class _Event(Wire):
    choices: tuple[_Choice, ...] | None = None
    usage: Any = None
    error: Any = None


class _Embedding(Wire):
    index: int = 0
    embedding: tuple[float, ...] | str


class _Embedded(Wire):
    data: tuple[_Embedding, ...]
    usage: Any = None


class OpenAI(Hosted):
    """One account at one OpenAI-compatible server."""

    async def chat(self, call: Call, progress: Progress) -> Answer:
        body = request_body(call.backend, call.chat, native=self._upstream.host == OPENAI_HOST)

        async def ask() -> Answer:
            return await self._upstream.chat(
                PATH, body, call, lambda: _OpenAIReading(progress, call.chat.stop), self._keys
            )

        try:
            return await ask()
        except AttemptError as error:
            refused = error.failure.kind is FailureKind.BAD_REQUEST and error.failure.upstream
            if not refused or not _left_out(body, refused):
                raise
        return await ask()

    async def embed(self, call: Call) -> Answer:
        async def ask(chat: Chat) -> Answer:
            body = embed_body(call.backend, chat)
            return await self._upstream.chat(
                "/embeddings", body, call, lambda: Vectors(chat, _Embedded, _made), self._keys
            )

        return await in_batches(call, TEXTS_A_CALL, ask)


def embed_body(name: str, chat: Chat) -> dict[str, Any]:
    """What `/embeddings` is sent."""
    return {"model": name, "input": chat.embed, "encoding_format": "base64", **dimensions(chat, "dimensions")}


def _made(said: _Embedded) -> Made:
    vectors = [each.embedding for each in sorted(said.data, key=lambda each: each.index)]
    return Made(vectors, usage_of(said.usage.get("prompt_tokens"), 0) if isinstance(said.usage, dict) else None)


def request_body(name: str, chat: Chat, *, native: bool) -> dict[str, Any]:
    """What `/chat/completions` is sent; `native` is OpenAI itself. What is None stays out."""
    messages = [_message(turn, native=native) for turn in chat.messages]
    body = {
        "model": name,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens" if native else "max_tokens": chat.max_tokens,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "stop": chat.stop or None,
        "seed": chat.seed,
        "tools": [_unmarked(tool) for tool in chat.tools or ()] or None,
        "tool_choice": chat.tool_choice if chat.tools else None,
        "parallel_tool_calls": chat.parallel_tool_calls if chat.tools else None,
        "response_format": chat.response_format,
        EFFORT: None if chat.reasoning_effort == "auto" else chat.reasoning_effort,
    }
    return {name: value for name, value in body.items() if value is not None}


def _left_out(body: dict[str, Any], refused: str) -> bool:
    """Take out what the server's own words are against: its model thinks in its own way, or not at all."""
    if EFFORT in refused:
        return body.pop(EFFORT, None) is not None
    if THOUGHT in refused:
        thoughts = [message.pop(THOUGHT, None) for message in body["messages"]]
        return any(thoughts)
    return False


def _message(turn: ChatMessage, *, native: bool) -> dict[str, Any]:
    """As it came, parts of whatever type too, but without what is for another provider only."""
    message = turn.model_dump(exclude_none=True, exclude={"thinking_blocks", *((THOUGHT,) if native else ())})
    if isinstance(turn.content, list):
        message["content"] = [_unmarked(part) for part in turn.content]
    if turn.role == "developer" and not native:
        message["role"] = "system"
    return message


def _unmarked(part: dict[str, Any]) -> dict[str, Any]:
    """Without Anthropic's mark of what to cache, an unknown field to others."""
    return {name: value for name, value in part.items() if name != "cache_control"}


class _OpenAIReading(EventReading[_Event]):
    """Events until `[DONE]`."""

    def __init__(self, progress: Progress, stop: Sequence[str]) -> None:
        super().__init__(progress, _Event)
        self._stop = stop
        self._ended_by: tuple[Any, ...] = ()
        self._finish: str | None = None
        self._usage: Any = None

    def done(self) -> None:
        if self._finish is None and not self.pieces:
            raise malformed("the answer is empty", DONE)
        self.complete = True

    def take(self, event: _Event) -> None:
        if event.error is not None:
            raise said_in_stream(event.error, began=self.pieces > 0)
        if event.usage is not None:
            self._usage = event.usage
        for choice in event.choices or ():
            if choice.index != 0:
                continue
            if piece := choice.delta or choice.message:
                self.on_reasoning(piece.reasoning_content or piece.reasoning)
                self.on_text(piece.content or piece.refusal)
                for at, call in enumerate(piece.tool_calls or ()):
                    index = at if call.index is None else call.index
                    self.on_tool_call(index, call.function.arguments, call_id=call.id, name=call.function.name)
            if choice.finish_reason:
                self._finish, self._ended_by = choice.finish_reason, (choice.stop_reason, choice.matched_stop)

    def answer(self) -> Answer:
        if (body := self.whole_body()) is not None:
            if not body.choices and body.error is None:
                raise malformed("the answer is not a chat completion", body.encode())
            self.take(body)
        if self._finish in BROKEN_OFF:
            raise interrupted(f"the upstream gave its answer up: {self._finish}")
        if self.pending or not (self.complete or self._finish):
            raise interrupted("the answer ended without [DONE] and without a finish_reason")
        calls = self.tool_calls()
        reason = FINISH_REASONS.get(self._finish or "", "stop")
        return Answer(
            text=self.text,
            reasoning=self.reasoning,
            tool_calls=calls,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            # Servers have stop sequences of their own too, and other reasons by these names.
            stop_sequence=next((said for said in self._ended_by if said in self._stop), None),
            usage=_usage(self._usage),
        )


def _usage(said: Any) -> Usage | None:
    if not isinstance(said, dict):
        return None
    sent, made, total = (said.get(f"{name}_tokens", 0) for name in ("prompt", "completion", "total"))
    # Gemini and xAI count what a model thought in the total only, and bill it.
    if type(sent) is type(made) is type(total) is int and total > sent + made >= 0:
        made = total - sent
    cached = _detail(said.get("prompt_tokens_details"), "cached_tokens")
    thought = _detail(said.get("completion_tokens_details"), "reasoning_tokens")
    return usage_of(sent, made, cached, thought)


def _detail(details: object, name: str) -> object:
    return (details.get(name) or 0) if isinstance(details, dict) else 0
