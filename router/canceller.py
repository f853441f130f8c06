"""Cancellations that are kept: whatever state the request is in, it ends, and what was queued for it goes.

A node that runs it hears of it at the same time and stops; its outcome brings the reply, with what was spent. Only when
none comes soon is the reply written here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pydantic import ValidationError

from router.consume import bury, consuming
from router.core.settle import unanswered
from router.ports import Bus, Delivery, later
from router.replies import write_reply
from router.world_book import WorldBook
from schemas.decision import Decided, Forward
from schemas.event import Cancelled
from schemas.failure import Error, ErrorType, Spent
from schemas.ids import message_id
from schemas.reply import Reply
from schemas.work import WorkItem
from subjects import Cancel, Event, parse
from subjects import Reply as ReplySubject
from subjects.streams import CANCELLER, EVENTS, REPLIES, ROUTER, WORK

MAX_IN_FLIGHT = 64
LOOK_S: Final = 0.1
UNDECIDED_LOOKS: Final = 5
"""A request that is being decided has its record in a moment; one that waits sees for itself; else there is none."""
RUNNING_LOOKS: Final = 8
"""What the node that runs it has, to say so itself."""


class Canceller:
    """Stateless; replicas share the consumer."""

    def __init__(self, bus: Bus, book: WorldBook) -> None:
        self._bus = bus
        self._book = book

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        limit = self._book.in_force.policy.limits.max_deliveries
        async with consuming(
            self._bus,
            CANCELLER,
            later(self._called_off),
            later(self._given_up),
            max_in_flight=MAX_IN_FLIGHT,
            max_deliveries=limit,
        ):
            yield

    async def _called_off(self, delivery: Delivery) -> None:
        key = parse(delivery.subject)
        if not isinstance(key, Cancel):
            await bury(self._bus, delivery, "bad_cancel", f"{delivery.subject!r} is no llm.cancel.<client>.<rid>")
            return
        decided = await self._decided(key)
        if decided is None or not isinstance(decided.decision.choice, Forward):
            return
        stored = await self._stored(key)
        if stored is not None and stored.status != "cancelled":
            return
        cancelled = Cancelled(client=key.client, rid=key.rid, at_ms=delivery.timestamp_ms)
        await self._bus.publish(
            str(Event(key.client, key.rid, "cancelled")),
            cancelled.encode(),
            msg_id=message_id("cancelled", key.client, key.rid),
        )
        queued = await self._queued(key, decided)
        if stored is None:
            await self._answer(key, decided, queued[-1][1] if queued else None)
        # Only now: without a reply it is its work that brings one, should this process die.
        for seq, _ in queued:
            await self._bus.delete(WORK, seq)

    async def _answer(self, key: Cancel, decided: Decided, latest: WorkItem | None) -> None:
        """Unless the node that runs it does."""
        started = await self._bus.last(EVENTS, str(Event(key.client, key.rid, "attempt_started"))) is not None
        if started:
            for _ in range(RUNNING_LOOKS):
                await asyncio.sleep(LOOK_S)
                if await self._stored(key) is not None:
                    return
        await write_reply(self._bus, self._reply(decided, latest, "unknown" if started else "no"))

    async def _decided(self, key: Cancel) -> Decided | None:
        for _ in range(UNDECIDED_LOOKS):
            letter = await self._bus.last(EVENTS, str(Event(key.client, key.rid, "decided")))
            if letter is not None:
                return Decided.decode(letter.data)
            await asyncio.sleep(LOOK_S)
        return None

    async def _stored(self, key: Cancel) -> Reply | None:
        letter = await self._bus.last(REPLIES, str(ReplySubject(key.client, key.rid)))
        return Reply.decode(letter.data) if letter else None

    async def _queued(self, key: Cancel, decided: Decided) -> list[tuple[int, WorkItem]]:
        """What is queued or scheduled for it, of this client only, with its sequence; the latest attempt last."""
        found = []
        slot = f"seq-{decided.request_seq}"
        for subject in (f"llm.work.*.*.*.{key.rid}", f"llm.work.{ROUTER}.retry.*.{slot}"):
            async for letter in self._bus.read(WORK, subject):
                try:
                    work = WorkItem.decode(letter.data)
                except ValidationError:
                    continue
                if (work.client, work.rid) == (key.client, key.rid):
                    found.append((letter.seq, work))
        return found

    def _reply(self, decided: Decided, work: WorkItem | None, spent: Spent) -> Reply:
        world = self._book.world(received_ms=decided.world.received_ms, request_seq=decided.request_seq)
        why = "its client called it off"
        if work is not None:
            return unanswered(ErrorType.CANCELLED, work, world, why, spent)
        error = Error(type=ErrorType.CANCELLED, request_id=decided.rid, message=why, retryable=False, spent=spent)
        return Reply.refused(
            client=decided.client,
            request_hash=decided.request_hash,
            error=error,
            total_ms=world.as_of_ms - world.received_ms,
            decision=decided.decision.line(),
            policy=decided.world.policy,
        )

    async def _given_up(self, delivery: Delivery) -> None:
        await bury(self._bus, delivery, "poison", f"delivered {delivery.delivered} times without being cancelled")
