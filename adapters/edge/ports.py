"""What the edge needs: the durable requests of all clients, who they are and what they may, and the policy in force."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from router.ports import Headers
from schemas.chunk import Chunk
from schemas.policy import Policy
from schemas.reply import Reply
from schemas.request import LlmRequest


@dataclass(frozen=True, slots=True)
class Submission:
    """A request as it will lie in LLM_REQUESTS."""

    client: str
    rid: str
    capability: str
    body: bytes
    """An encoded `LlmRequest`."""
    deadline_ms: int
    stream: bool = False
    headers: Headers = field(default_factory=dict)


class Pending(Protocol):
    """An accepted request, heard since before it was accepted."""

    async def reply(self) -> Reply:
        """The terminal reply, an error too. Raises RequestFailedError when none comes by its deadline, or none can."""

    def items(self) -> AsyncGenerator[Chunk | Reply, None]:
        """Of a streamed request: its pieces in order, and the terminal reply last. Raises what `reply` raises."""


class Requests(Protocol):
    """Durable requests. What the bus cannot do is a RequestFailedError of type storage_unavailable."""

    def opened(self, submission: Submission) -> AbstractAsyncContextManager[Pending]:
        """Have it accepted, and listen. Leaving the context stops the listening and nothing else."""

    async def accept(self, submission: Submission) -> None:
        """Have it accepted; it will be answered."""

    async def cancel(self, client: str, rid: str) -> None:
        """Have it stopped, in whatever state it is; returns when the bus has that."""


class Identity(Protocol):
    """Who asks, and whether that may be."""

    def caller(self, headers: Mapping[str, str], rid: str) -> str:
        """The client's name, a token. Raises RequestFailedError: unauthorized."""

    async def admit(self, submission: Submission) -> Headers:
        """Leave to submit, and the headers to submit with. Raises RequestFailedError: forbidden, rate_limited, ..."""


@dataclass(frozen=True, slots=True)
class Edge:
    """All that a door is given."""

    requests: Requests
    identity: Identity
    policy: Callable[[], Policy]
    """The one in force."""
    count_tokens: Callable[[LlmRequest], int] = field(kw_only=True)
    """An estimate of what a model would be given."""
    ping_s: float = 5.0
    """So often a stream says that it lives while nothing comes."""
