"""Google's own Gemini API, always streamed. The key goes into a header: URLs end up in logs."""

from typing import Any, Final
from urllib.parse import quote

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from adapters.providers.embeddings import Made, Vectors, dimensions, in_batches
from adapters.providers.failures import interrupted, malformed, said_in_stream, usage_of
from adapters.providers.gemini_request import request_body
from adapters.providers.hosted import Hosted
from adapters.providers.reading import LINE_BYTES
from adapters.providers.sse import EventReading
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.base import Wire
from schemas.failure import FailureKind
from schemas.outcome import Answer, FinishReason
from schemas.request import Chat
from schemas.work import Usage

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(
        (
            "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "ESCALATION", "MODEL_ARMOR",
        ),
        "content_filter",
    ),
}  # fmt: skip
"""Any other is an answer that was given up."""
GARBLED: Final = frozenset(
    {"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MALFORMED_RESPONSE"}
)
UNSPECIFIED: Final = "FINISH_REASON_UNSPECIFIED"
TEXTS_A_CALL: Final = 100


class _FunctionCall(Wire):
    name: str
    id: str | None = None
    args: dict[str, Any] | None = None


class _Part(Wire):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = Field(default=None, alias="thoughtSignature")
    function_call: _FunctionCall | None = Field(default=None, alias="functionCall")


class _Content(Wire):
    parts: tuple[_Part, ...] | None = None


class _Candidate(Wire):
    index: int | None = None
    content: _Content | None = None
    finish_reason: str | None = Field(default=None, alias="finishReason")
    finish_message: str | None = Field(default=None, alias="finishMessage")


class _Feedback(Wire):
    block_reason: str | None = Field(default=None, alias="blockReason")


class _Event(Wire):
    candidates: tuple[_Candidate, ...] | None = None
    prompt_feedback: _Feedback | None = Field(default=None, alias="promptFeedback")
    usage: Any = Field(default=None, alias="usageMetadata")
    error: Any = None


class _Values(Wire):
    values: tuple[float, ...]


class _Embedded(Wire):
    embeddings: tuple[_Values, ...]
    usage: Any = Field(default=None, alias="usageMetadata")


_EVENTS: Final[TypeAdapter[_Event | tuple[_Event, ...]]] = TypeAdapter(_Event | tuple[_Event, ...])


class Gemini(Hosted):
    """One account at Google, or at a server that speaks like it."""

    key_header = "x-goog-api-key"
    key_prefix = ""
    listed_at = ("/models?pageSize=1000", "models", "name")

    async def chat(self, call: Call, progress: Progress) -> Answer:
        body = request_body(call.backend, call.chat)
        path = f"{_path(call.backend)}:streamGenerateContent?alt=sse"
        return await self._upstream.chat(path, body, call, lambda: _GeminiReading(progress), self._keys)

    async def embed(self, call: Call) -> Answer:
        async def ask(chat: Chat) -> Answer:
            path, body = f"{_path(call.backend)}:batchEmbedContents", embed_body(call.backend, chat)
            return await self._upstream.chat(path, body, call, lambda: Vectors(chat, _Embedded, _made), self._keys)

        return await in_batches(call, TEXTS_A_CALL, ask)

    async def probe(self) -> dict[str, str | None]:
        names = {model: model.removeprefix("models/") for model in self._models}
        found = await self._upstream.offers(set(names.values()), *self.listed_at, self._keys)
        return {model: found[name] for model, name in names.items()}


def _path(backend: str) -> str:
    return f"/models/{quote(backend.removeprefix('models/'), safe='')}"


def embed_body(name: str, chat: Chat) -> dict[str, Any]:
    """What `:batchEmbedContents` is sent."""
    every = {"model": f"models/{name.removeprefix('models/')}", **dimensions(chat, "outputDimensionality")}
    return {
        "requests": [{**every, "content": {"role": "user", "parts": [{"text": text}]}} for text in chat.embed or ()]
    }


def _made(said: _Embedded) -> Made:
    counted = said.usage.get("promptTokenCount") if isinstance(said.usage, dict) else None
    return Made([each.values for each in said.embeddings], usage_of(counted, 0))


class _GeminiReading(EventReading[_Event]):
    """Events until the body ends, of which one gives a `finishReason`: there is no end mark like `[DONE]`.

    A `finishReason` alone ends nothing, since some servers give one with every piece and some with an empty first
    one. It is the end when pieces came without one before it, and the usage with it or after it.
    """

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress, _Event)
        self._finish: str | None = None
        self._why: str | None = None
        self._went_on = False
        """A piece came without a `finishReason`: this server keeps it for the last."""
        self._usage: Any = None
        self._calls = 0
        self._bare = b""

    def line(self, line: bytes) -> None:
        # An error may come as plain lines of JSON, also amid a stream; and so does everything without `alt=sse`.
        if self._bare or line.lstrip().startswith((b"{", b"[")):
            self._bare += line + b"\n"
            if len(self._bare) > LINE_BYTES:
                raise malformed(f"the answer is larger than {LINE_BYTES >> 20} MB", line)
        else:
            super().line(line)

    def take(self, event: _Event) -> None:
        if event.error is not None:
            raise said_in_stream(event.error, began=self.pieces > 0)
        if event.usage is not None:
            self._usage = event.usage
        if not event.candidates and event.prompt_feedback and (reason := event.prompt_feedback.block_reason):
            raise AttemptError.of(FailureKind.CONTENT_POLICY, f"Gemini refused the prompt: {reason}", upstream=reason)
        for candidate in event.candidates or ():
            if not candidate.index:
                self._candidate(candidate)
        self.complete = self._went_on and self._finish is not None and event.usage is not None

    def _candidate(self, candidate: _Candidate) -> None:
        pieces = self.pieces
        for part in (candidate.content and candidate.content.parts) or ():
            (self.on_reasoning if part.thought else self.on_text)(part.text)
            if part.function_call is not None:
                self._call(part.function_call, part.thought_signature)
        if candidate.finish_reason not in (None, UNSPECIFIED):
            self._finish, self._why = candidate.finish_reason, candidate.finish_message
        elif self.pieces > pieces:
            self._finish, self._went_on = None, True

    def _call(self, said: _FunctionCall, signature: str | None) -> None:
        arguments = to_json(said.args or {}).decode()
        call = self.on_tool_call(self._calls, arguments, call_id=said.id, name=said.name)
        self._calls += 1  # a call comes whole, in one part
        if signature is not None:
            call["extra_content"] = {"google": {"thought_signature": signature}}

    def answer(self) -> Answer:
        self._take_bare()
        if self.pending or self._finish is None:
            raise interrupted("the answer ended without a finishReason")
        why = f"Gemini ended its answer with {self._finish}" + (f": {self._why}" if self._why else "")
        if self._finish in GARBLED:
            raise AttemptError.of(FailureKind.MALFORMED, why, upstream=self._why)
        reason = FINISH_REASONS.get(self._finish)
        if reason is None:
            raise interrupted(why)
        usage = _usage(self._usage)
        return Answer(
            text=self.text,
            reasoning=self.reasoning,
            tool_calls=self.tool_calls(),
            finish_reason="tool_calls" if self._calls and reason == "stop" else reason,
            usage=usage if usage and (usage.tokens_out or not self.pieces) else None,
        )

    def _take_bare(self) -> None:
        # Taken out first: a reading that failed with a key's refusal reads the next key's answer.
        bare, self._bare = self._bare, b""
        if not bare:
            return
        try:
            said = _EVENTS.validate_json(bare)
        except ValidationError:
            raise malformed("the answer is not of this dialect", bare) from None
        for event in said if isinstance(said, tuple) else (said,):
            self.take(event)
        if self._finish is None and not self.pieces:
            raise malformed("the answer is not of this dialect", bare)


def _usage(said: Any) -> Usage | None:
    if not isinstance(said, dict):
        return None
    prompt, results, made, thought, cached = counts = [
        said.get(f"{name}TokenCount", 0)
        for name in ("prompt", "toolUsePrompt", "candidates", "thoughts", "cachedContent")
    ]
    # None answers no tokens at all; what is negative could hide in a sum.
    if any(type(count) is not int or count < 0 for count in counts) or not prompt:
        return None
    return usage_of(prompt + results, made + thought, cached, thought)
