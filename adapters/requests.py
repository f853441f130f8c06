"""The durable requests of all clients of an edge, on the bus: `adapters.edge.ports.Requests`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from adapters import request_states
from adapters.bus import JetStreamBus
from adapters.client import Ticket, any_reply, await_reply, submit_body
from adapters.edge.ports import Pending, Submission
from adapters.edge.states import RequestPage, RequestState
from adapters.mailbox import Heard, Mailbox
from adapters.streaming import Feed, Pieces, feed
from router.errors import BusError, LlmbusError, RequestFailedError
from router.ports import Letter
from schemas.chunk import Chunk
from schemas.failure import ErrorType
from schemas.ids import message_id
from schemas.reply import Reply
from subjects import Cancel

ACCEPT_S: Final = 2.0
"""Whoever asks is told within this time that the bus is away."""
RETRY_AFTER_MS: Final = 2_000
WITHDRAW_S: Final = 2.0
CANCELLED_S: Final = 2.0
"""What a cancelled request may take to end while its client is kept waiting for that."""
DECIDED_LOOKS: Final = 5
LOOK_AGAIN_S: Final = 0.02
"""A request that was just accepted is decided in so many such moments, unless no router runs."""

Key = tuple[str, str]
"""(client, request id)"""


@dataclass(slots=True)
class _Callers:
    """Those who wait here for one request."""

    waiting: int = 0
    seqs: set[int] = field(default_factory=set)
    """Where their submissions lie, of those too who have left."""


class BusPending:
    """A request of ours that was accepted."""

    def __init__(self, requests: "BusRequests", submission: Submission, heard: Heard, ticket: Ticket) -> None:
        self._requests = requests
        self._submission = submission
        self._heard = heard
        self._ticket = ticket
        self.pieces: Feed | None = None

    async def reply(self) -> Reply:
        return Reply.decode((await self._letter()).data)

    async def items(self) -> AsyncGenerator[Chunk | Reply, None]:
        if self.pieces is None:
            yield await self.reply()
            return
        # Pieces name their request by its id only: one that was taken brings those of another.
        ours = not self._submission.named
        async with aclosing(self.pieces.until(self._letter())) as items:
            async for item in items:
                if not isinstance(item, Chunk):
                    yield Reply.decode(item.data)
                elif ours or (ours := await self._requests.is_the_one(self._ticket)):
                    yield item

    async def _letter(self) -> Letter:
        return await await_reply(self._requests.mailbox, self._heard, self._ticket)

    async def withdraw(self) -> None:
        with suppress(LlmbusError, TimeoutError):
            async with asyncio.timeout(WITHDRAW_S):
                await self._requests.withdraw(self._submission.client, self._submission.rid)


class BusRequests:
    """One per edge."""

    def __init__(self, bus: JetStreamBus, mailbox: Mailbox) -> None:
        self._bus = bus
        self.mailbox = mailbox
        self._callers: dict[Key, _Callers] = {}

    @asynccontextmanager
    async def opened(self, submission: Submission) -> AsyncIterator[Pending]:
        client, rid = submission.client, submission.rid
        pieces = Feed(self._bus, client, rid, Pieces()) if submission.stream else None
        with ExitStack() as stack:
            async with self._in_time(rid, submitting=True):
                await self.mailbox.open(client, pieces=submission.stream)
                heard = stack.enter_context(self.mailbox.expecting(client, rid))
                if pieces is not None:
                    stack.enter_context(self.mailbox.hearing(client, rid, pieces.hear))
                ticket = await self._submit(submission)
            pending = BusPending(self, submission, heard, ticket)
            pending.pieces = pieces
            callers = self._callers.setdefault((client, rid), _Callers())
            callers.waiting += 1
            if not ticket.repeated:
                callers.seqs.add(ticket.seq)
            try:
                yield pending
            finally:
                callers.waiting -= 1
                if not callers.waiting:
                    self._callers.pop((client, rid), None)

    async def accept(self, submission: Submission) -> None:
        async with self._in_time(submission.rid, submitting=True):
            ticket = await self._submit(submission)
        if submission.named and not await self._may_be_the_one(ticket):
            words = f"request id {submission.rid!r} was used for another request; choose another Idempotency-Key"
            raise RequestFailedError.of(ErrorType.IDEMPOTENCY_CONFLICT, submission.rid, words)

    async def cancel(self, client: str, rid: str) -> None:
        async with self._in_time(rid):
            await self.mailbox.open(client)
            with self.mailbox.expecting(client, rid) as heard:
                await self._call_off(client, rid)
                with suppress(TimeoutError):
                    async with asyncio.timeout(CANCELLED_S):
                        await any_reply(self.mailbox, heard, client, rid)

    async def state(self, client: str, rid: str) -> RequestState | None:
        async with self._in_time(rid):
            return await request_states.state(self._bus, client, rid)

    async def page(self, client: str, limit: int, before: int | None) -> RequestPage:
        async with self._in_time("list"):
            return await request_states.page(self._bus, client, limit, before)

    async def watch(self, client: str, rid: str, attempt_id: str, after: int) -> AsyncGenerator[Chunk | Reply, None]:
        async with AsyncExitStack() as stack:
            async with self._in_time(rid):
                await self.mailbox.open(client)
                heard = stack.enter_context(self.mailbox.expecting(client, rid))
                watching = feed(self._bus, client, rid, attempt_id=attempt_id, after=after)
                pieces = await stack.enter_async_context(watching)
            coming = pieces.until(any_reply(self.mailbox, heard, client, rid), look_first=True)
            items = await stack.enter_async_context(aclosing(coming))
            try:
                async for item in items:
                    yield item if isinstance(item, Chunk) else Reply.decode(item.data)
            except (BusError, TimeoutError) as error:
                raise _away(rid, f"its reply cannot be had: {str(error) or 'none came'}", unknown=False) from None

    async def withdraw(self, client: str, rid: str) -> None:
        """One of its callers has hung up. It is still counted."""
        callers = self._callers[client, rid]
        if callers.waiting > 1:
            return
        decided = await request_states.decided(self._bus, client, rid)
        if decided is None or decided.request_seq in callers.seqs:
            await self._call_off(client, rid)

    async def is_the_one(self, ticket: Ticket) -> bool:
        """Whether its id is known to be its own."""
        with suppress(BusError):
            decided = await request_states.decided(self._bus, ticket.client, ticket.request_id)
            return decided is not None and decided.request_hash == ticket.request_hash
        return False

    async def _may_be_the_one(self, ticket: Ticket) -> bool:
        """False when its id is known to be another's."""
        for _ in range(DECIDED_LOOKS):
            with suppress(BusError):
                if decided := await request_states.decided(self._bus, ticket.client, ticket.request_id):
                    return decided.request_hash == ticket.request_hash
            await asyncio.sleep(LOOK_AGAIN_S)
        return True

    async def _call_off(self, client: str, rid: str) -> None:
        await self._bus.publish(str(Cancel(client, rid)), b"", msg_id=message_id("cancel", client, rid))

    async def _submit(self, submission: Submission) -> Ticket:
        return await submit_body(
            self._bus, submission.capability, submission.body, client=submission.client, rid=submission.rid,
            deadline_ms=submission.deadline_ms, named_in_subject=True, headers=submission.headers,
        )  # fmt: skip

    @asynccontextmanager
    async def _in_time(self, rid: str, *, submitting: bool = False) -> AsyncIterator[None]:
        """Raises RequestFailedError: storage_unavailable.

        A publish that is given up here is not sent again: its request is stored soon or never.
        """
        if not self._bus.link().up:
            raise _away(rid, "the bus is away; nothing was accepted", unknown=False)
        try:
            async with asyncio.timeout(ACCEPT_S):
                yield
        except (BusError, TimeoutError) as error:
            raise _away(rid, f"the bus did not do it: {str(error) or 'no answer'}", unknown=submitting) from None
        except RequestFailedError as error:
            if error.error.type is not ErrorType.STORAGE_UNAVAILABLE:
                raise
            raise _away(rid, f"the bus did not do it: {error.error.message}", unknown=submitting) from None


def _away(rid: str, words: str, *, unknown: bool) -> RequestFailedError:
    if unknown:
        words += (
            f". It is not known whether the request was accepted: look at /v1/requests/{rid}, or send it again with "
            f"`Idempotency-Key: {rid}`, which runs it once"
        )
    return RequestFailedError.of(
        ErrorType.STORAGE_UNAVAILABLE, rid, words, retry_after_ms=RETRY_AFTER_MS,
        spent="unknown" if unknown else "no",
    )  # fmt: skip
