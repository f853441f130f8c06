"""What the services need from outside: a bus and providers. Adapters fulfil these, tests may."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

from schemas.outcome import Answer
from schemas.request import Chat
from subjects.streams import ConsumerSpec

Headers = Mapping[str, str]
NO_HEADERS: Headers = {}


@dataclass(frozen=True, slots=True)
class Stored:
    """The broker's word that a message is in its stream."""

    stream: str
    seq: int
    duplicate: bool = False
    """True when the message id was known already; `seq` is then the first one's."""


@dataclass(frozen=True, slots=True)
class Link:
    """The connection to the broker: whether it stands, and since when (broker time)."""

    up: bool
    since_ms: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as it lies in a stream."""

    subject: str
    data: bytes
    headers: Headers
    seq: int
    timestamp_ms: int
    """Broker time of its storage, epoch milliseconds."""


@dataclass(frozen=True, slots=True)
class Question:
    """A plain request that waits for an answer in the caller's inbox; several answers are a stream."""

    subject: str
    data: bytes
    headers: Headers
    respond: Callable[[bytes, Headers], Awaitable[None]]


class Delivery(Protocol):
    """A message that a consumer was handed and must acknowledge."""

    subject: str
    data: bytes
    headers: Headers
    stream: str
    seq: int
    delivered: int
    """From 1; more means it came back."""
    pending: int
    """How many more the consumer had waiting behind it."""
    timestamp_ms: int

    async def ack(self) -> None:
        """Done; it never comes back. Fire and forget: a lost acknowledgement is a redelivery."""

    async def ack_sync(self) -> None:
        """Done, and the broker said it knows. Raises UnknownError."""

    async def nak(self, delay_ms: int) -> None:
        """Bring it again after the delay."""

    async def working(self) -> None:
        """Still at it: the acknowledgement time starts anew."""


Rest = Callable[[], Awaitable[None]]
"""What is left to do of a message when everything has been done that need not wait."""
Handler = Callable[[Delivery], Rest]
"""Called as the message comes, so that what it sends goes out in the same turn of the loop; it must not block."""


def later(handle: Callable[[Delivery], Awaitable[None]]) -> Handler:
    """A handler that does nothing at once."""
    return lambda delivery: partial(handle, delivery)


class Bus(Protocol):
    """JetStream as the services use it."""

    @property
    def max_payload_bytes(self) -> int:
        """The broker's limit for a message, headers included."""

    def now_ms(self) -> int:
        """The broker's clock, epoch milliseconds, carried by the local monotonic clock: never steps back."""

    def link(self) -> Link:
        """As far as this process can tell: a cable that was cut is noticed by pings that are not answered."""

    def send(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Headers = NO_HEADERS,
        msg_id: str | None = None,
        first: bool = False,
    ) -> Awaitable[Stored]:
        """Write a message to the connection, in order; what is returned is its acknowledgement, to be awaited.

        `first`: store it only if its subject holds nothing yet. A lost acknowledgement is retried with the same message
        id. Raises TooLargeError at once; ConflictError, UnavailableError, UnknownError when the result is awaited.
        """  # fmt: skip

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Headers = NO_HEADERS,
        msg_id: str | None = None,
        first: bool = False,
    ) -> Stored:
        """`send`, and await the acknowledgement."""  # fmt: skip

    async def tell(self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS) -> None:
        """Publish without acknowledgement: heartbeats, chunks, bells."""

    def consume(
        self, spec: ConsumerSpec, handler: Handler, *, batch: Callable[[], int]
    ) -> AbstractAsyncContextManager[Callable[[], None]]:
        """Hand every message of a durable consumer to `handler`; what it leaves runs in a task of its own.

        `batch()` tells how many more may be taken right now; it is asked after every message, and whenever the function
        that is given is called: more may be taken. Leaving stops taking, then waits for the handlers under way.
        """

    async def waiting(self, spec: ConsumerSpec) -> int:
        """How many messages of a consumer nobody was handed yet. Raises UnavailableError."""

    def listen(
        self, subject: str, on_message: Callable[[str, bytes, Headers], None]
    ) -> AbstractAsyncContextManager[None]:
        """Call `on_message(subject, data, headers)` for each core message. It must not block."""

    def serve(
        self, subject: str, answer: Callable[[Question], Awaitable[None]], *, name: str, about: str
    ) -> AbstractAsyncContextManager[None]:
        """Answer plain requests on `subject`, shared among replicas."""

    async def last(self, stream: str, subject: str) -> Letter | None:
        """The newest message of a subject (wildcards allowed); None when there is none."""

    async def get(self, stream: str, seq: int) -> Letter | None:
        """One message by its sequence; None when it is gone."""

    def read(self, stream: str, subject: str = ">", *, start_seq: int = 1) -> AsyncIterator[Letter]:
        """The messages of a stream in order, from a sequence on, up to the end as it is now."""

    async def delete(self, stream: str, seq: int) -> None:
        """Take one message out of a work queue; nothing happens when it is gone."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a provider. Durations in milliseconds."""

    backend: str
    chat: Chat
    first_token_ms: int
    idle_ms: int
    stands_in_for: str | None = None
    """What a loopback names as the model it is not."""


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A piece of a tool call; `id` and `name` come with its first piece."""

    index: int
    """Which call of the answer, from 0."""
    arguments: str
    """The next characters of its arguments, JSON once all are there."""
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Progress:
    """What a provider reports while it works; the executor reads the clock and sends the chunks."""

    on_text: Callable[[str], None] = field(default=lambda _text: None)
    """Called with each piece of the answer, in order; the first call is the first token."""
    on_reasoning: Callable[[str], None] = field(default=lambda _text: None)
    on_tool_call: Callable[[ToolCallPiece], None] = field(default=lambda _piece: None)
    on_thinking_block: Callable[[dict[str, Any]], None] = field(default=lambda _block: None)
    """Called with each of the answer's `thinking_blocks`, once it is whole."""


@dataclass(frozen=True, slots=True)
class Held:
    """A model that a backend has in memory, or is bringing there."""

    memory_bytes: int | None = None
    """All that it takes, its contexts too; None: the backend does not tell."""
    gpu_bytes: int | None = None
    """How much of that a GPU holds; a model that lies there in part is slow. None: the backend does not tell."""
    loading: bool = False
    """Not there yet."""
    context_tokens: int | None = None
    """What it was loaded with; None: the backend does not tell."""
    expires_at_ms: int | None = None
    """When the backend lets it go unless it is used, in epoch milliseconds; None: not by itself."""


class Provider(Protocol):
    """A backend that answers chats. One per provider and node; safe for concurrent calls."""

    async def chat(self, call: Call, progress: Progress) -> Answer:
        """The whole answer. Raises AttemptError, classified; cancelling it closes the upstream connection."""

    async def probe(self) -> dict[str, str | None]:
        """By backend model name: None when usable, else why not and what to do. Raises AttemptError if unreachable."""

    async def aclose(self) -> None:
        """Close what is open."""


@runtime_checkable
class Embedder(Protocol):
    """A provider that turns texts into vectors too."""

    async def embed(self, call: Call) -> Answer:
        """A vector for each text of `call.chat.embed`, whole or not at all. Raises AttemptError, classified."""


class Residency(Protocol):
    """Which models a backend holds in memory, seen and changed. Models go by the backend's names, as in the policy.

    What fails is an AttemptError, by its kind: UNUSABLE (the backend does not have the model, or cannot do this),
    INSUFFICIENT_MEMORY, SILENCE (not done within its time), CONNECTION (the backend is away), SERVER_ERROR (any other).
    """

    fixed: bool
    """What it holds cannot be changed from here."""

    async def models(self) -> dict[str, Held]:
        """Everything in memory, what others loaded there too. Raises AttemptError."""

    async def load(self, name: str) -> None:
        """Returns once the model is in memory, at once if it is. Cancelled or late it gives the load up.

        Make the room before: what a backend throws out by itself is its own choice. Raises AttemptError.
        """

    async def unload(self, name: str) -> None:
        """Returns once the model is gone, at once if it is not there. Raises AttemptError.

        Not for a model that generates: some backends let it finish, others do not.
        """

    async def generates(self, name: str, within_ms: int) -> None:
        """Have it generate one token: a backend calls a model loaded though what runs it hangs. Raises AttemptError.

        Whoever asks holds one of the model's places, or it would wait behind the others; what is not in memory would
        be loaded.
        """

    async def aclose(self) -> None:
        """Close what is open."""
