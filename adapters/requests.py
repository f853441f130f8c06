"""The durable requests of all clients of an edge, on the bus: `adapters.edge.ports.Requests`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Final

from adapters.bus import JetStreamBus
from adapters.client import Ticket, await_reply, submit_body
from adapters.edge.ports import Pending, Submission
from adapters.mailbox import Heard, Mailbox
from adapters.streaming import Feed, Pieces
from router.errors import BusError, RequestFailedError
from schemas.chunk import Chunk
from schemas.failure import ErrorType
from schemas.ids import message_id
from schemas.reply import Reply
from subjects import Cancel

ACCEPT_S: Final = 2.0
"""Whoever asks is told within this time that the bus is away."""
RETRY_AFTER_MS: Final = 2_000


class BusPending:
    """A request of ours that was accepted."""

    def __init__(self, mailbox: Mailbox, heard: Heard, ticket: Ticket, pieces: Feed | None) -> None:
        self._mailbox = mailbox
        self._heard = heard
        self._ticket = ticket
        self._pieces = pieces

    async def reply(self) -> Reply:
        return Reply.decode((await await_reply(self._mailbox, self._heard, self._ticket)).data)

    async def items(self) -> AsyncGenerator[Chunk | Reply, None]:
        if self._pieces is None:
            yield await self.reply()
            return
        until = self._pieces.until(await_reply(self._mailbox, self._heard, self._ticket))
        async with aclosing(until) as items:
            async for item in items:
                yield item if isinstance(item, Chunk) else Reply.decode(item.data)


class BusRequests:
    """One per edge."""

    def __init__(self, bus: JetStreamBus, mailbox: Mailbox) -> None:
        self._bus = bus
        self._mailbox = mailbox

    @asynccontextmanager
    async def opened(self, submission: Submission) -> AsyncIterator[Pending]:
        client, rid = submission.client, submission.rid
        pieces = Feed(self._bus, client, rid, Pieces()) if submission.stream else None
        with ExitStack() as stack:
            async with self._in_time(rid):
                await self._mailbox.open(client, pieces=submission.stream)
                heard = stack.enter_context(self._mailbox.expecting(client, rid))
                if pieces is not None:
                    stack.enter_context(self._mailbox.hearing(client, rid, pieces.hear))
                ticket = await self._submit(submission)
            yield BusPending(self._mailbox, heard, ticket, pieces)

    async def accept(self, submission: Submission) -> None:
        async with self._in_time(submission.rid):
            await self._submit(submission)

    async def cancel(self, client: str, rid: str) -> None:
        async with self._in_time(rid):
            await self._bus.publish(str(Cancel(client, rid)), b"", msg_id=message_id("cancel", client, rid))

    async def _submit(self, submission: Submission) -> Ticket:
        return await submit_body(
            self._bus, submission.capability, submission.body, client=submission.client, rid=submission.rid,
            deadline_ms=submission.deadline_ms, named_in_subject=True, headers=submission.headers,
        )  # fmt: skip

    @asynccontextmanager
    async def _in_time(self, rid: str) -> AsyncIterator[None]:
        """Raises RequestFailedError: storage_unavailable."""
        try:
            async with asyncio.timeout(ACCEPT_S):
                yield
        except (BusError, TimeoutError) as error:
            words = f"the bus is away, and it is not known whether the request was accepted: {error or 'no answer'}"
            raise RequestFailedError.of(
                ErrorType.STORAGE_UNAVAILABLE, rid, words, retry_after_ms=RETRY_AFTER_MS, spent="unknown"
            ) from None
