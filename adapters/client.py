"""The Python client: ask and await, stream, or submit now and fetch the result later, from anywhere.

async with Client.connect("nats://127.0.0.1:4222", "npc-ai") as client:
    reply = await client.ask("Greet the party.", capability="creative")
    print(reply.message.content, reply.cost_usd)
"""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from adapters.bus import JetStreamBus, open_bus
from adapters.mailbox import Heard, Mailbox
from adapters.streaming import Stream, feed
from router.errors import BusError, RequestFailedError, TooLargeError
from router.ports import NO_HEADERS, Headers, Letter
from schemas import headers as h
from schemas.chunk import Chunk
from schemas.failure import ErrorType
from schemas.ids import message_id
from schemas.reply import Reply
from schemas.request import DEFAULT_DEADLINE_MS, MAX_DEADLINE_MS, LlmRequest, request_hash
from subjects import Cancel, Request, token

RESERVED_ID = re.compile(r"seq-[0-9]+\Z")
__all__ = ["Client", "RequestFailedError", "Ticket"]

REPLY_GRACE_MS = 5_000
"""A reply comes by the deadline and this."""
SILENCE_S = (DEFAULT_DEADLINE_MS + REPLY_GRACE_MS) / 1000
WITHDRAW_S = 2.0
"""What a caller who leaves may be held up by telling the bus so."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """An accepted request: durable, and answered under (client, request_id)."""

    client: str
    request_id: str
    request_hash: str
    seq: int
    deadline_ms: int = DEFAULT_DEADLINE_MS
    repeated: bool = False
    """The broker had it already, and tells nobody: its reply may be there."""


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
        """Submit and await the answer. Raises RequestFailedError, typed; UnavailableError when the bus is away.

        Cancelling this cancels the request.
        """
        rid = request_id or _named(request) or uuid.uuid4().hex
        with self._mailbox.expecting(self.name, rid) as heard:
            try:
                ticket = await self.submit(request, capability=capability, request_id=rid)
                return _answer(await await_reply(self._mailbox, heard, ticket))
            except asyncio.CancelledError:
                await self._withdraw(rid)
                raise

    def stream(self, request: str | LlmRequest, *, capability: str = "chat", request_id: str | None = None) -> Stream:
        """Submit, and have the answer as it comes; iterating raises what `ask` raises.

        Leaving it before the reply cancels the request.
        """
        return Stream(self._stream(request, capability, request_id or _named(request) or uuid.uuid4().hex))

    def watch(
        self, request_id: str, *, attempt_id: str | None = None, after: int = -1, silence_s: float = SILENCE_S
    ) -> Stream:
        """The answer to an earlier request, of this process or another, as it comes; any number may watch.

        With `attempt_id` and `after` it begins behind piece `after` of that attempt, unless a newer one is running.
        Leaving it cancels nothing. Iterating raises what `ask` raises; RequestFailedError too when nothing is heard for
        `silence_s`, and AttemptIdError.
        """
        if after >= 0 and attempt_id is None:
            raise ValueError("pieces are numbered within an attempt: `after` needs `attempt_id`")
        return Stream(self._watch(request_id, attempt_id, after, silence_s))

    async def cancel(self, request_id: str) -> None:
        """Have a request stopped, in whatever state it is; returns when the bus has it. Raises BusError.

        Its reply is `cancelled`, unless it has another one already or the answer wins.
        """
        subject = str(Cancel(self.name, request_id))
        await self._bus.publish(subject, b"", msg_id=message_id("cancel", self.name, request_id))

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

    async def _stream(
        self, request: str | LlmRequest, capability: str, rid: str
    ) -> AsyncGenerator[Chunk | Reply, None]:
        letter: Letter | None = None
        with self._mailbox.expecting(self.name, rid) as heard:
            async with feed(self._bus, self.name, rid) as pieces:
                try:
                    ticket = await self._submit_streamed(request, capability, rid)
                    async with aclosing(pieces.until(await_reply(self._mailbox, heard, ticket))) as items:
                        async for item in items:
                            if isinstance(item, Chunk):
                                yield item
                            else:
                                letter = item
                except (asyncio.CancelledError, GeneratorExit):
                    await self._withdraw(rid)
                    raise
        if letter is not None:
            yield _answer(letter)

    async def _watch(
        self, rid: str, attempt_id: str | None, after: int, silence_s: float
    ) -> AsyncGenerator[Chunk | Reply, None]:
        with self._mailbox.expecting(self.name, rid) as heard:
            async with feed(self._bus, self.name, rid, attempt_id=attempt_id, after=after) as pieces:
                coming = pieces.until(
                    any_reply(self._mailbox, heard, self.name, rid), look_first=True, silence_s=silence_s
                )
                try:
                    async with aclosing(coming) as items:
                        async for item in items:
                            yield item if isinstance(item, Chunk) else _answer(item)
                except TimeoutError:
                    message = f"nothing was heard of it for {silence_s:g} s: is the id right? Its reply may still come"
                    raise RequestFailedError.of(ErrorType.DEADLINE_EXCEEDED, rid, message, spent="unknown") from None

    async def _submit_streamed(self, request: str | LlmRequest, capability: str, rid: str) -> Ticket:
        if isinstance(request, LlmRequest):
            whole = request.model_copy(update={"stream": True})
            return await self.submit(whole, capability=capability, request_id=rid)
        # A prompt that is none is refused by the router, typed, as one without a stream is.
        body = json.dumps({"prompt": request, "stream": True}, ensure_ascii=False)
        return await self.submit(body, capability=capability, request_id=rid)

    async def _withdraw(self, rid: str) -> None:
        """Cancel a request whose caller leaves, as well as that can be done in a short time."""
        with suppress(BusError, TimeoutError):
            async with asyncio.timeout(WITHDRAW_S):
                await self.cancel(rid)


async def submit_body(
    bus: JetStreamBus, capability: str, body: bytes, *, client: str, rid: str, deadline_ms: int,
    named_in_subject: bool = False, headers: Headers = NO_HEADERS,
) -> Ticket:  # fmt: skip
    """Publish a request as it stands. Raises RequestFailedError when the broker cannot take its size, BusError."""
    if RESERVED_ID.match(rid):
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, f"{rid!r} is kept for requests without an id")
    subject = str(Request(capability, client if named_in_subject else None))
    digest = request_hash(capability, body)
    own = {h.REQUEST_ID: token("request id", rid), h.CLIENT: token("client", client)}
    try:
        stored = await bus.publish(
            subject, body, headers={**headers, **own}, msg_id=message_id("request", client, rid, digest)
        )
    except TooLargeError as error:
        raise RequestFailedError.of(ErrorType.PAYLOAD_TOO_LARGE, rid, str(error)) from error
    except BusError as error:
        raise RequestFailedError.of(ErrorType.STORAGE_UNAVAILABLE, rid, str(error)) from error
    return Ticket(client, rid, digest, stored.seq, deadline_ms, stored.duplicate)


async def stored_reply(mailbox: Mailbox, ticket: Ticket) -> Letter | None:
    """The reply to this very request, if it is there already."""
    return await mailbox.stored(ticket.client, ticket.request_id, request_hash=ticket.request_hash, seq=ticket.seq)


async def await_reply(mailbox: Mailbox, heard: Heard, ticket: Ticket) -> Letter:
    """The reply to this very request, expected since before it was submitted. Raises RequestFailedError."""
    if ticket.repeated:
        with suppress(BusError):  # it is away: the wait looks again
            if stored := await stored_reply(mailbox, ticket):
                return stored
    timeout_s = (max(0, ticket.deadline_ms) + REPLY_GRACE_MS) / 1000
    letter = await mailbox.wait(
        heard, ticket.client, ticket.request_id, timeout_s, request_hash=ticket.request_hash, seq=ticket.seq
    )
    if letter is None:
        message = f"no reply within its deadline; it may still come at llm.res.{ticket.client}.{ticket.request_id}"
        raise RequestFailedError.of(ErrorType.DEADLINE_EXCEEDED, ticket.request_id, message, spent="unknown")
    return letter


async def any_reply(mailbox: Mailbox, heard: Heard, client: str, rid: str) -> Letter:
    """The reply to whatever request has this id. Raises UnavailableError, TimeoutError when none can come any more."""
    longest_s = (MAX_DEADLINE_MS + REPLY_GRACE_MS) / 1000
    letter = await mailbox.stored(client, rid) or await mailbox.wait(heard, client, rid, longest_s)
    if letter is None:
        raise TimeoutError
    return letter


def _named(request: str | LlmRequest) -> str | None:
    return request.request_id if isinstance(request, LlmRequest) else None


def _answer(letter: Letter) -> Reply:
    reply = Reply.decode(letter.data)
    if reply.error is not None:
        raise RequestFailedError(reply.error, reply)
    return reply
