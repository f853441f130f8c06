"""What the edge needs: the durable requests of all clients, who they are and what they may, the nodes as they are, and
the policy in force."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from adapters.edge.states import RequestPage, RequestState
from router.ports import Headers
from schemas.chunk import Chunk
from schemas.health import FleetHealth
from schemas.heartbeat import Heartbeat
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
    named: bool = False
    """Its client chose the id, and may have used it before."""


class Pending(Protocol):
    """An accepted request, heard since before it was accepted."""

    async def reply(self) -> Reply:
        """The terminal reply, an error too. Raises RequestFailedError when none comes by its deadline, or none can."""

    def items(self) -> AsyncGenerator[Chunk | Reply, None]:
        """Of a streamed request: its pieces in order, and the terminal reply last. Raises what `reply` raises."""

    async def withdraw(self) -> None:
        """Its caller has hung up: have it stopped, unless somebody else asked for the same before or waits for it here.

        As well as that can be done in a short time; raises nothing.
        """


class Requests(Protocol):
    """Durable requests. What the bus cannot do is a RequestFailedError of type storage_unavailable."""

    def opened(self, submission: Submission) -> AbstractAsyncContextManager[Pending]:
        """Have it accepted, and listen. Leaving the context stops the listening and nothing else."""

    async def accept(self, submission: Submission) -> None:
        """Have it accepted; it will be answered. Raises RequestFailedError: idempotency_conflict too."""

    async def cancel(self, client: str, rid: str) -> None:
        """Have it stopped, in whatever state it is; returns when it has ended, or soon without that."""

    async def state(self, client: str, rid: str) -> RequestState | None:
        """How it stands; None when this client has no such request."""

    def watch(self, client: str, rid: str, attempt_id: str, after: int) -> AsyncGenerator[Chunk | Reply, None]:
        """Its pieces, those kept from before first, and the reply last; a newer attempt starts over.

        It begins behind piece `after` of that attempt; `0.0` and -1 are before them all. Leaving it cancels nothing.
        """

    async def page(self, client: str, limit: int, before: int | None) -> RequestPage:
        """The newest requests of a client; those before a place that an earlier page gave."""


class Identity(Protocol):
    """Who asks, and whether that may be."""

    def caller(self, headers: Mapping[str, str], rid: str) -> str:
        """The client's name, a token. Raises RequestFailedError: unauthorized."""

    def models(self, client: str) -> frozenset[str] | None:
        """The only ones of the policy that may answer it; None: all of them."""

    def concurrent(self, client: str) -> int | None:
        """How many of its requests may be under way; None: any number."""

    async def admit(self, submission: Submission) -> Headers:
        """Leave to submit, and the headers to submit with. Raises RequestFailedError: forbidden, rate_limited, ..."""


class Fleet(Protocol):
    """Routers, nodes and what they have in memory."""

    def heard(self) -> Mapping[str, Heartbeat]:
        """By name, the nodes that are there, as they last said of themselves."""

    async def health(self) -> FleetHealth:
        """How everything is, found out now; within two seconds, whatever is away."""


@dataclass(frozen=True, slots=True)
class Edge:
    """All that a door is given."""

    requests: Requests
    identity: Identity
    policy: Callable[[], Policy]
    """The one in force."""
    fleet: Fleet
    count_tokens: Callable[[LlmRequest], int] = field(kw_only=True)
    """An estimate of what a model would be given."""
    ping_s: float = 5.0
    """So often a stream says that it lives while nothing comes."""
    watching: set[asyncio.Task[Any]] = field(default_factory=set)
    """What need not be waited for when the edge ends: cancelled, it tells its caller to go on elsewhere."""
