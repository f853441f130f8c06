"""What a client asks: the body of `llm.req.*`, as it comes in (`LlmRequest`) and as providers get it (`Chat`)."""

import hashlib
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from schemas.base import FIRST_FAULT, Message, Wire
from subjects.grammar import Urgency

Strategy = Literal["agent_preference", "quality", "cost", "speed"]
ReasoningEffort = Literal["none", "auto", "low", "medium", "high"]
Role = Literal["system", "developer", "user", "assistant", "tool"]

Objects = Annotated[list[dict[str, Any]], FIRST_FAULT]
Texts = Annotated[list[str], FIRST_FAULT]

DEFAULT_DEADLINE_MS = 120_000
MAX_DEADLINE_MS = 30 * 60_000
MAX_TEXTS = 2048
"""That one request may have embedded; as many as OpenAI takes."""


def request_hash(capability: str, body: bytes) -> str:
    """SHA-256 of capability, newline and body, in hex: which request a reply answers."""
    digest = hashlib.sha256(capability.encode())
    digest.update(b"\n")
    digest.update(body)
    return digest.hexdigest()


class ChatMessage(Wire):
    """One turn, OpenAI-shaped; content is text or a list of typed parts."""

    model_config = ConfigDict(extra="allow")

    role: Role
    content: str | Objects | None = None
    name: str | None = None
    tool_calls: Objects | None = None
    tool_call_id: str | None = None
    thinking_blocks: Objects | None = None
    """A provider's own record of its thinking, as its reply brought it; some want it back with the tool results."""

    def text(self) -> str:
        """The words of this turn, parts joined by newlines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(text for part in self.content or () if isinstance(text := part.get("text"), str))


class Preferences(Wire):
    """How the client would like it done."""

    model_config = ConfigDict(extra="allow")

    strategy: Strategy | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: Texts | str | None = None
    seed: int | None = None
    reasoning_effort: ReasoningEffort | None = None
    """How long a model may think, where it can; absent: as it likes; `auto`: the same, said where it must be said."""


class Constraints(Wire):
    """What the client cannot bend."""

    model_config = ConfigDict(extra="allow")

    time_critical: bool = False
    quality_critical: bool = False
    budget_constraint: Literal["low", "medium", "high"] | None = None
    """How tight the budget is; `high`: only models that cost nothing, `medium`: no expensive ones."""
    dataset_size: int | None = Field(default=None, ge=0)
    """Rows the request is about; large ones prefer long contexts."""
    max_cost_usd: float | None = Field(default=None, ge=0)


class LlmRequest(Message):
    """The body of `llm.req.*`. Unknown fields are kept and ignored."""

    model_config = ConfigDict(extra="allow")

    request_id: str | None = None
    prompt: str | None = None
    messages: Annotated[tuple[ChatMessage, ...], FIRST_FAULT] | None = None
    context: str | None = None
    """Joined before the prompt."""
    agent: str | None = None
    task: str | None = None
    model: str | None = None
    preferences: Preferences = Preferences()
    constraints: Constraints = Constraints()
    urgency: Urgency = "normal"
    stream: bool = False
    deadline_ms: int = DEFAULT_DEADLINE_MS
    tools: Objects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    """False: at most one tool call in an answer, where a provider can be told so."""
    response_format: dict[str, Any] | None = None
    embed: Annotated[tuple[str, ...], FIRST_FAULT] | None = None
    """Texts to turn into vectors, in place of a chat: one vector each, in their order."""
    dimensions: int | None = Field(default=None, ge=1, le=65_536)
    """How long the vectors shall be, where a model can shorten them; absent: as the model makes them."""
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.embed is not None:
            self._says_what_to_embed(self.embed)
        elif not any(m.text().strip() or m.content or m.tool_calls for m in self.messages or ()) and not (
            self.prompt and self.prompt.strip()
        ):
            raise ValueError("empty prompt: give `prompt` or `messages` with content")
        if self.deadline_ms > MAX_DEADLINE_MS:
            raise ValueError(f"deadline_ms is at most {MAX_DEADLINE_MS} (30 minutes)")
        return self

    def _says_what_to_embed(self, texts: tuple[str, ...]) -> None:
        if self.prompt or self.messages or self.context or self.tools:
            raise ValueError("texts to embed stand alone: leave out `prompt`, `messages`, `context` and `tools`")
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise ValueError(f"{len(texts)} texts to embed: give 1 to {MAX_TEXTS} in one request")
        if "" in texts:
            raise ValueError(f"text {texts.index('')} is empty: there is nothing to embed in it")

    def conversation(self) -> tuple[ChatMessage, ...]:
        """All turns: messages, then context and prompt as the user's last turn."""
        turns = self.messages or ()
        asked = "\n\n".join(part for part in (self.context, self.prompt) if part and part.strip())
        return (*turns, ChatMessage(role="user", content=asked)) if asked else turns


class Chat(Wire):
    """What a provider is asked, free of routing: the part of a request that costs tokens."""

    messages: tuple[ChatMessage, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    reasoning_effort: ReasoningEffort | None = None
    tools: Objects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    stream: bool = False
    embed: tuple[str, ...] | None = None
    """Texts to turn into vectors; then there are no messages, and nothing is streamed."""
    dimensions: int | None = None
    metadata: dict[str, Any] | None = None
    """The client's own; only `loopback` reads it, for what it is told to do."""

    @classmethod
    def of(cls, request: LlmRequest) -> Self:
        wish = request.preferences
        stop = (wish.stop,) if isinstance(wish.stop, str) else tuple(wish.stop or ())
        return cls(
            messages=request.conversation(),
            max_tokens=wish.max_tokens,
            temperature=wish.temperature,
            top_p=wish.top_p,
            stop=stop,
            seed=wish.seed,
            reasoning_effort=wish.reasoning_effort,
            tools=request.tools,
            tool_choice=request.tool_choice,
            parallel_tool_calls=request.parallel_tool_calls,
            response_format=request.response_format,
            stream=request.stream and request.embed is None,
            embed=request.embed,
            dimensions=request.dimensions,
            metadata=request.metadata,
        )

    def texts(self) -> tuple[str, ...]:
        """All words that the model reads, turn by turn, or text by text where they are to be embedded."""
        return tuple(turn.text() for turn in self.messages) if self.embed is None else self.embed
