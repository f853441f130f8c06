"""Outcomes in, replies out: settle, record, then write the one reply or the next attempt's work."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from pydantic import ValidationError

from router.consume import bury, consuming
from router.core.settle import Settlement, settle, unanswered
from router.errors import TooLargeError
from router.ports import Bus, Delivery, Rest, later
from router.replies import send_reply, write_reply
from router.reporting import Reporter
from router.sending import send_work
from router.world_book import WorldBook
from schemas.event import AttemptEnded
from schemas.failure import ErrorType, FailureKind
from schemas.ids import message_id
from schemas.outcome import Outcome
from schemas.work import Target, WorkItem
from subjects import Event
from subjects.streams import SETTLER

MAX_IN_FLIGHT = 128


class Settler:
    """Stateless: everything it needs came back in the outcome."""

    def __init__(self, bus: Bus, book: WorldBook) -> None:
        self._bus = bus
        self._book = book

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        limit = self._book.in_force.policy.limits.max_deliveries
        async with consuming(
            self._bus, SETTLER, self._ended, later(self._given_up), max_in_flight=MAX_IN_FLIGHT, max_deliveries=limit
        ):
            yield

    def _ended(self, delivery: Delivery) -> Rest:
        try:
            outcome = Outcome.decode(delivery.data)
        except ValidationError as error:
            # Not of our executors' making, and it names no client that could be told.
            why = f"{error.error_count()} errors: {error.errors()[0]['msg']}"
            return partial(bury, self._bus, delivery, "bad_outcome", why)
        work = outcome.work
        self._book.sent(work.target, -1)
        world = self._book.settling(work)
        settled = settle(outcome, world, self._book.in_force.policy)
        if settled.reply is not None and settled.reply.status == "ok":
            return send_reply(self._bus, settled.reply, settled.record, settled.booking)
        if settled.why == "retry_same":
            # At once: others that are settled meanwhile must see it spent.
            self._book.retries.retried(self._bus.now_ms())
        return partial(self._failed, work, settled)

    async def _failed(self, work: WorkItem, settled: Settlement) -> None:
        if settled.retry is not None:
            await self._retry(work, settled, settled.retry)
        elif await self._moved(work):
            await self._record(work, settled)
        elif settled.reply is not None:
            await send_reply(self._bus, settled.reply, settled.record, settled.booking)()

    async def _moved(self, work: WorkItem) -> bool:
        """Whether this attempt was given up for lost and has a successor: then its failure ends nothing."""
        ended = await Reporter(self._bus, work.target.node).recorded(work)
        return ended is not None and ended.failure is not None and ended.failure.kind is FailureKind.NODE_LOST

    async def _retry(self, work: WorkItem, settled: Settlement, retry: WorkItem) -> None:
        await self._record(work, settled, retry.target)
        try:
            self._book.sent(retry.target)
            await send_work(self._bus, retry, at_ms=settled.retry_at_ms)
        except TooLargeError as error:
            world = self._book.world(received_ms=work.received_ms, request_seq=work.request_seq)
            await write_reply(self._bus, unanswered(ErrorType.PAYLOAD_TOO_LARGE, retry, world, str(error)))

    async def _record(self, work: WorkItem, settled: Settlement, following: Target | None = None) -> None:
        event = AttemptEnded(
            client=work.client,
            rid=work.rid,
            attempt=settled.record,
            booking=settled.booking,
            next=following,
            why=settled.why if following else "superseded",
        )
        await self._bus.publish(
            str(Event(work.client, work.rid, "attempt_ended")),
            event.encode(),
            msg_id=message_id("attempt_ended", work.client, work.rid, settled.record.attempt_id),
        )

    async def _given_up(self, delivery: Delivery) -> None:
        """Whatever it is that cannot be settled, its client is told."""
        await bury(self._bus, delivery, "poison", f"delivered {delivery.delivered} times without being settled")
        try:
            work = Outcome.decode(delivery.data).work
        except ValidationError:
            return
        world = self._book.world(received_ms=work.received_ms, request_seq=work.request_seq)
        await write_reply(self._bus, unanswered(ErrorType.POISON, work, world, "its outcome could not be settled"))
