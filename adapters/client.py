"""The Python client: ask and await, or submit now and fetch the result later, from anywhere.

async with Client.connect("nats://127.0.0.1:4222", "npc-ai") as client:
    reply = await client.ask("Greet the party.", capability="creative")
    print(reply.message.content, reply.cost_usd)
"""

import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from adapters.bus import JetStreamBus, open_bus
from adapters.mailbox import Heard, Mailbox
from router.errors import BusError, LlmbusError, TooLargeError
from router.ports import NO_HEADERS, Headers, Letter
from schemas import headers as h
from schemas.chunk import Chunk
from schemas.failure import RETRYABLE, Error, ErrorType
from schemas.ids import message_id
from schemas.reply import Reply
from schemas.request import DEFAULT_DEADLINE_MS, LlmRequest, request_hash
from subjects import Chunk as ChunkSubject
from subjects import Request, token

RESERVED_ID = re.compile(r"seq-[0-9]+\Z")
REPLY_GRACE_MS = 5_000
"""A reply comes by the deadline and this."""


class RequestFailedError(LlmbusError):
    """The request ended with a typed error; `reply` holds all that is known, `error` what went wrong."""

    def __init__(self, error: Error, reply: Reply | None = None) -> None:
        self.error = error
        self.reply = reply
        super().__init__(f"{error.type.value}: {error.message} (request {error.request_id})")


@dataclass(frozen=True, slots=True)
class Ticket:
    """An accepted request: durable, and answered under (client, request_id)."""

    client: str
    request_id: str
    request_hash: str
    seq: int
    deadline_ms: int = DEFAULT_DEADLINE_MS


class Client:
    """One identity on the bus. Safe for many requests at once; cancelling one leaves the others alone."""

    def __init__(self, bus: JetStreamBus, mailbox: Mailbox, name: str) -> None:
        self._bus = bus
        self._mailbox = mailbox
        self.name = token("client", name)

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, name: str, *, wait_s: float = 5.0) -> AsyncIterator[Self]:
        """Raises UnavailableError when there is no bus."""
        async with open_bus(url, name=f"client {name}", wait_s=wait_s) as bus, Mailbox(bus) as mailbox:
            await mailbox.open(name)
            yield cls(bus, mailbox, name)

    async def ask(self, request: str | LlmRequest, *, capability: str = "chat", request_id: str | None = None) -> Reply:
        """Submit and await the answer. Raises RequestFailedError, typed; UnavailableError when the bus is away."""
        rid = request_id or _named(request) or uuid.uuid4().hex
        with self._mailbox.expecting(self.name, rid) as heard:
            ticket = await self.submit(request, capability=capability, request_id=rid)
            return _answer(await await_reply(self._mailbox, heard, ticket))

    async def submit(
        self, request: str | LlmRequest, *, capability: str = "chat", request_id: str | None = None
    ) -> Ticket:
        """Have the request accepted: it is stored, and will be answered whatever happens to this process."""
        body = request.encode()
        deadline_ms = request.deadline_ms if isinstance(request, LlmRequest) else DEFAULT_DEADLINE_MS
        return await submit_body(
            self._bus, capability, body, client=self.name, rid=request_id or _named(request) or uuid.uuid4().hex,
            deadline_ms=deadline_ms,
        )  # fmt: skip

    async def result(self, request_id: str, *, timeout_s: float = 0.0) -> Reply | None:
        """The reply to an earlier request, of this process or another; None when there is none within `timeout_s`."""
        with self._mailbox.expecting(self.name, request_id) as heard:
            letter = await self._mailbox.stored(self.name, request_id)
            if letter is None and timeout_s > 0:
                letter = await self._mailbox.wait(heard, self.name, request_id, timeout_s)
        return Reply.decode(letter.data) if letter else None

    async def result_of(self, ticket: Ticket) -> Reply:
        """Await the answer to a submitted request. Raises RequestFailedError."""
        with self._mailbox.expecting(ticket.client, ticket.request_id) as heard:
            letter = await stored_reply(self._mailbox, ticket)
            return _answer(letter or await await_reply(self._mailbox, heard, ticket))

    @asynccontextmanager
    async def hearing(self, request_id: str, on_piece: Callable[[str, str], None]) -> AsyncIterator[None]:
        """Call `on_piece(attempt_id, text)` for each piece of a streamed answer; enter it before the request is made.

        Another attempt id means that the answer starts over.
        """

        def heard(_subject: str, data: bytes, _headers: Headers) -> None:
            chunk = Chunk.decode(data)
            on_piece(chunk.attempt_id, chunk.text)

        subject = str(ChunkSubject(self.name, request_id, 0)).removesuffix("0") + "*"
        async with self._bus.listen(subject, heard):
            yield

    async def route_request(self, agent_name: str, task_type: str, message: str, **kwargs: Any) -> dict[str, Any]:
        """The old face that agents already call: the answer as a plain dictionary.

        Keyword arguments are fields of the request: `context`, `preferences`, `constraints`, `urgency`, `model`, ...
        Raises RequestFailedError.
        """
        capability = kwargs.pop("capability", "chat")
        request = LlmRequest(agent=agent_name, task=task_type, prompt=message, **kwargs)
        reply = await self.ask(request, capability=capability)
        usage = reply.usage
        return {
            "response": reply.message.content if reply.message else "",
            "model_used": reply.model,
            "request_id": reply.request_id,
            "metadata": {
                "cost": None if reply.cost_usd is None else float(reply.cost_usd),
                "response_time": reply.timings.total_ms / 1000,
                "tokens_used": usage.tokens_in + usage.tokens_out if usage else None,
                "provider": reply.provider,
                "node": reply.node,
                "decision": reply.decision,
            },
        }


async def submit_body(
    bus: JetStreamBus, capability: str, body: bytes, *, client: str, rid: str, deadline_ms: int,
    named_in_subject: bool = False, headers: Headers = NO_HEADERS,
) -> Ticket:  # fmt: skip
    """Publish a request as it stands. Raises RequestFailedError when the broker cannot take its size, BusError."""
    if RESERVED_ID.match(rid):
        raise RequestFailedError(failed(ErrorType.BAD_REQUEST, rid, f"{rid!r} is kept for requests without an id"))
    subject = str(Request(capability, client if named_in_subject else None))
    digest = request_hash(capability, body)
    own = {h.REQUEST_ID: token("request id", rid), h.CLIENT: token("client", client)}
    try:
        stored = await bus.publish(
            subject, body, headers={**headers, **own}, msg_id=message_id("request", client, rid, digest)
        )
    except TooLargeError as error:
        raise RequestFailedError(failed(ErrorType.PAYLOAD_TOO_LARGE, rid, str(error))) from error
    except BusError as error:
        raise RequestFailedError(failed(ErrorType.STORAGE_UNAVAILABLE, rid, str(error))) from error
    return Ticket(client, rid, digest, stored.seq, deadline_ms)


async def stored_reply(mailbox: Mailbox, ticket: Ticket) -> Letter | None:
    """The reply to this very request, if it is there already."""
    return await mailbox.stored(ticket.client, ticket.request_id, request_hash=ticket.request_hash, seq=ticket.seq)


async def await_reply(mailbox: Mailbox, heard: Heard, ticket: Ticket) -> Letter:
    """The reply to this very request, expected since before it was submitted. Raises RequestFailedError."""
    timeout_s = (max(0, ticket.deadline_ms) + REPLY_GRACE_MS) / 1000
    letter = await mailbox.wait(
        heard, ticket.client, ticket.request_id, timeout_s, request_hash=ticket.request_hash, seq=ticket.seq
    )
    if letter is None:
        message = f"no reply within its deadline; it may still come at llm.res.{ticket.client}.{ticket.request_id}"
        raise RequestFailedError(failed(ErrorType.DEADLINE_EXCEEDED, ticket.request_id, message, spent_unknown=True))
    return letter


def _named(request: str | LlmRequest) -> str | None:
    return request.request_id if isinstance(request, LlmRequest) else None


def _answer(letter: Letter) -> Reply:
    reply = Reply.decode(letter.data)
    if reply.error is not None:
        raise RequestFailedError(reply.error, reply)
    return reply


def failed(kind: ErrorType, rid: str, message: str, *, spent_unknown: bool = False) -> Error:
    return Error(
        type=kind,
        request_id=rid,
        message=message,
        retryable=kind in RETRYABLE,
        spent="unknown" if spent_unknown else "no",
    )
