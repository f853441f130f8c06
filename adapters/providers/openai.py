"""Any server that speaks OpenAI's `/chat/completions`, streamed as server-sent events."""

from collections.abc import Collection, Sequence
from typing import Any, Final, Self

from pydantic import SecretStr, ValidationError

from adapters.providers import Setup
from adapters.providers.failures import interrupted, malformed, said_in_stream, usage_of
from adapters.providers.http import LINE_BYTES, Bearer, Reading, Upstream
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.base import Wire
from schemas.failure import FailureKind
from schemas.outcome import Answer, FinishReason
from schemas.request import Chat
from schemas.work import Usage

OPENAI_HOST: Final = "api.openai.com"
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


class _Event(Wire):
    choices: tuple[_Choice, ...] | None = None
    usage: Any = None
    error: Any = None


class OpenAI:
    """One account at one OpenAI-compatible server; of several keys, the next one follows a refused one."""

    def __init__(
        self, url: str | None, models: Collection[str] = (), *, keys: Sequence[SecretStr] = (),
        key_names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._models = models
        self._keys = [Bearer(key) for key in keys]
        self._key_names = " or ".join(key_names)
        self._at = 0
        """The key in use. Refused ones have their turn again after all others."""
        self._upstream = Upstream(url, keys)

    @classmethod
    def of(cls, setup: Setup) -> Self:
        return cls(setup.url, tuple(setup.models), keys=setup.keys, key_names=setup.key_names)

    @property
    def _without_key(self) -> str | None:
        """Why nothing can be asked of it, if so."""
        if self._keys or not self._key_names:
            return None
        return f"no key for {self._upstream.name}: set {self._key_names}"

    async def chat(self, call: Call, progress: Progress) -> Answer:
        if self._without_key:
            raise AttemptError.of(FailureKind.AUTH, self._without_key)
        body = request_body(call.backend, call.chat, native=self._upstream.host == OPENAI_HOST)
        at = self._at
        check = f"check {self._key_names}" if self._key_names else "check its key"
        try:
            return await self._upstream.stream(
                "/chat/completions", body, call, _OpenAIReading(progress), auth=self._key(),
                remedies={401: check, 402: check, 403: check},
            )  # fmt: skip
        except AttemptError as error:
            # Other calls may have found the same key refused: only the first of them moves on.
            if error.failure.kind is FailureKind.AUTH and self._keys and at == self._at:
                self._at = (at + 1) % len(self._keys)
            raise

    def _key(self) -> Bearer | None:
        return self._keys[self._at] if self._keys else None

    async def probe(self) -> dict[str, str | None]:
        if self._without_key:
            return dict.fromkeys(self._models, self._without_key)
        try:
            listed = await self._upstream.listed("/models", "data", "id", auth=self._key())
        except AttemptError as error:
            if error.failure.kind is FailureKind.AUTH:
                return dict.fromkeys(self._models, f"{error.failure.message}; check {self._key_names or 'its key'}")
            if error.failure.status != 404:
                raise
            listed = set(self._models)  # it keeps no list: a call will tell
        offered = {name.removeprefix("models/") for name in listed}  # which Gemini writes before every name
        return {
            name: None if name in offered else f"{self._upstream.name} does not offer {name}: correct `backend`"
            for name in self._models
        }

    async def aclose(self) -> None:
        await self._upstream.aclose()


def request_body(name: str, chat: Chat, *, native: bool) -> dict[str, Any]:
    """What `/chat/completions` is sent; `native` is OpenAI itself. What is None stays out."""
    messages = [
        turn if native or turn.role != "developer" else turn.model_copy(update={"role": "system"})
        for turn in chat.messages
    ]
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
        "tools": chat.tools or None,
        "tool_choice": chat.tool_choice if chat.tools else None,
        "response_format": chat.response_format,
    }
    return {name: value for name, value in body.items() if value is not None}


class _OpenAIReading(Reading):
    """Events until `[DONE]`, or one JSON object from a server that does not stream."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress)
        self._pending = b""
        """Data of an event that is not whole yet."""
        self._unstreamed: list[bytes] | None = None
        self._unstreamed_size = 0
        self._started = False
        self._finish: str | None = None
        self._usage: Any = None
        self._tool_calls: dict[int, dict[str, Any]] = {}

    def line(self, line: bytes) -> None:
        if not self._started and line.strip():
            self._started = True
            line = line.removeprefix(b"\xef\xbb\xbf")
            if line.lstrip().startswith(b"<"):
                raise malformed("a web page came in place of an answer: is the url right?", line)
            self._unstreamed = [] if line.lstrip().startswith(b"{") else None
        if self._unstreamed is not None:
            self._collect(line)
        elif line.startswith(b"data:"):
            self._data(line[5:].strip())
        elif not line and self._pending:
            raise malformed("an event is not the JSON of a chat completion", self._pending)

    def _collect(self, line: bytes) -> None:
        self._unstreamed_size += len(line)
        if self._unstreamed is None or self._unstreamed_size > LINE_BYTES:
            raise malformed(f"the answer is larger than {LINE_BYTES >> 20} MB", line)
        self._unstreamed.append(line)

    def _data(self, data: bytes) -> None:
        if data == b"[DONE]" and not self._pending:
            if self._finish is None and not self.pieces:
                raise malformed("the answer is empty", data)
            self.complete = True
            return
        self._pending += data
        if len(self._pending) > LINE_BYTES:
            raise malformed(f"an event is larger than {LINE_BYTES >> 20} MB", data)
        # An event may take several lines, and some servers leave out the blank line between two: it is whole as soon
        # as it is JSON.
        if not data.endswith(b"}"):
            return
        try:
            event = _Event.decode(self._pending)
        except ValidationError as error:
            if any(problem["type"] != "json_invalid" for problem in error.errors(include_input=False)):
                raise malformed("an event is not a chat completion", self._pending) from None
            return
        self._pending = b""
        self._take(event)

    def _take(self, event: _Event) -> None:
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
                    self._on_tool_call(at if call.index is None else call.index, call)
            self._finish = choice.finish_reason or self._finish

    def _on_tool_call(self, index: int, piece: _ToolCall) -> None:
        arguments = piece.function.arguments or ""
        self.grow(arguments)
        call = self._tool_calls.setdefault(
            index, {"id": piece.id or f"call_{index}", "type": "function", "function": {"name": "", "arguments": []}}
        )
        call["function"]["name"] = call["function"]["name"] or piece.function.name or ""
        call["function"]["arguments"].append(arguments)

    def answer(self) -> Answer:
        if self._unstreamed is not None:
            self._take_unstreamed(b"\n".join(self._unstreamed))
        if self._finish in BROKEN_OFF:
            raise interrupted(f"the upstream gave its answer up: {self._finish}")
        if self._pending or not (self.complete or self._finish):
            raise interrupted("the answer ended without [DONE] and without a finish_reason")
        for call in self._tool_calls.values():
            call["function"]["arguments"] = "".join(call["function"]["arguments"])
        reason = FINISH_REASONS.get(self._finish or "", "stop")
        return Answer(
            text="".join(self._text),
            reasoning="".join(self._reasoning) or None,
            tool_calls=tuple(call for _, call in sorted(self._tool_calls.items())),
            finish_reason="tool_calls" if self._tool_calls and reason == "stop" else reason,
            usage=_usage(self._usage),
        )

    def _take_unstreamed(self, body: bytes) -> None:
        try:
            event = _Event.decode(body)
        except ValidationError:
            event = _Event()
        if not event.choices and event.error is None:
            raise malformed("the answer is not a chat completion", body)
        self._take(event)


def _usage(said: Any) -> Usage | None:
    if not isinstance(said, dict):
        return None
    sent, made, total = (said.get(f"{name}_tokens", 0) for name in ("prompt", "completion", "total"))
    # Gemini and xAI count what a model thought in the total only, and bill it.
    if type(sent) is type(made) is type(total) is int and total > sent + made >= 0:
        made = total - sent
    cached = _detail(said.get("prompt_tokens_details"), "cached_tokens")
    thought = _detail(said.get("completion_tokens_details"), "reasoning_tokens")
    usage = usage_of(sent, made, cached, thought)
    # Nobody answers a chat with no tokens at all: that server does not count.
    return usage if usage and usage.tokens_in + usage.tokens_out else None


def _detail(details: object, name: str) -> object:
    return (details.get(name) or 0) if isinstance(details, dict) else 0
