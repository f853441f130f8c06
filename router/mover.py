"""Work that lies on a node that is lost or drains goes to whoever else can take it now; else it stays where it is.

A node is lost when it was not heard for `node_silent_ms`: its work is settled as if the attempt had failed. A node that
drains keeps what it has started. What nobody else can take waits for the node's return, or for its deadline, which is
the sweeper's. Every router does this: an attempt's successor is stored once, by its message id.
"""

import asyncio
from dataclasses import dataclass
from typing import Final, Literal

import structlog
from pydantic import ValidationError

from router.core.candidates import node_unable
from router.core.settle import Settlement, settle
from router.errors import BusError, TooLargeError
from router.ports import Bus, Letter
from router.reporting import Reporter
from router.sending import send_work
from router.world_book import WorldBook
from schemas.event import AttemptEnded, AttemptStarted
from schemas.failure import Failure, FailureKind
from schemas.ids import message_id
from schemas.outcome import AttemptTimings, Outcome
from schemas.work import Target, WorkItem, attempt_id
from subjects import Event
from subjects.streams import EVENTS, WORK

log = structlog.get_logger(__name__)

Why = Literal["lost", "drains"]
Place = tuple[str, str]
"""(node, model)"""

LOOK_S: Final = 0.5
ASLEEP_MS: Final = 2_000
"""A router that looks so late was asleep itself: what it has not heard meanwhile proves nothing."""
ALL_AGAIN_MS: Final = 2_000
"""What had to stay is looked at again when other places can take work, this often at most."""
AT_ONCE: Final = 64


@dataclass(slots=True)
class _Queue:
    """A node's work, as far as it was looked at: what lies before `next_seq` had to stay."""

    why: Why
    able: frozenset[Place]
    """Who could take work when it was looked at from its beginning."""
    begun_ms: int
    next_seq: int = 1


class Mover:
    def __init__(self, bus: Bus, book: WorldBook) -> None:
        self._bus = bus
        self._book = book
        self._queues: dict[str, _Queue] = {}
        self._listening_ms = bus.now_ms()
        """Since when silence can be told from not having listened."""
        self._looked_ms = self._listening_ms

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except BusError as error:
                log.warning("move.failed", error=str(error))

    async def look(self) -> None:
        """Move what can be moved now."""
        now_ms, link = self._bus.now_ms(), self._bus.link()
        if now_ms - self._looked_ms > ASLEEP_MS:
            self._listening_ms = now_ms
        self._listening_ms = max(self._listening_ms, link.since_ms)
        if link.up:
            gone, able = self._gone(now_ms), self._able(now_ms)
            self._queues = {node: self._queue(node, why, able, now_ms) for node, why in gone.items()}
            for node, queue in self._queues.items():
                await self._empty(node, queue)
        self._looked_ms = self._bus.now_ms()

    def _gone(self, now_ms: int) -> dict[str, Why]:
        policy, heard = self._book.in_force.policy, self._book.nodes
        gone: dict[str, Why] = {}
        for node in sorted({*policy.nodes, *heard}):
            view = heard.get(node)
            if now_ms - max(view.heard_ms if view else 0, self._listening_ms) > policy.limits.node_silent_ms:
                gone[node] = "lost"
            elif view is not None and view.draining:
                gone[node] = "drains"
        return gone

    def _able(self, now_ms: int) -> frozenset[Place]:
        limits = self._book.in_force.policy.limits
        return frozenset(
            (node, model)
            for node, view in self._book.nodes.items()
            for model in view.models
            if node_unable(view, model, now_ms, limits) is None
        )

    def _queue(self, node: str, why: Why, able: frozenset[Place], now_ms: int) -> _Queue:
        queue = self._queues.get(node)
        if queue is None or queue.why != why:
            log.warning("node.gone", node=node, why=why)
        elif queue.able == able or now_ms - queue.begun_ms < ALL_AGAIN_MS:
            return queue
        return _Queue(why, able, now_ms)

    async def _empty(self, node: str, queue: _Queue) -> None:
        batch: list[Letter] = []
        async for letter in self._bus.read(WORK, f"llm.work.{node}.>", start_seq=queue.next_seq):
            batch.append(letter)
            if len(batch) == AT_ONCE:
                await self._move_all(batch, queue)
                batch = []
        if batch:
            await self._move_all(batch, queue)

    async def _move_all(self, batch: list[Letter], queue: _Queue) -> None:
        await asyncio.gather(*(self._move(letter, queue.why) for letter in batch))
        queue.next_seq = batch[-1].seq + 1  # only now: a broker that is away must not make any forgotten

    async def _move(self, letter: Letter, why: Why) -> None:
        try:
            work = WorkItem.decode(letter.data)
        except ValidationError:
            return  # the executor buries it
        reporter = Reporter(self._bus, work.target.node)
        recorded = await reporter.recorded(work)
        settled_before = recorded is not None and not (
            recorded.failure and recorded.failure.kind is FailureKind.NODE_LOST
        )
        if settled_before or await reporter.reported(work) is not None:
            # It has ended, and its node is gone before it could acknowledge that.
            await self._bus.delete(WORK, letter.seq)
            return
        started = await self._started(work)
        if why == "drains" and started is not None:
            return
        outcome = self._outcome(work, why, started)
        settled = settle(outcome, self._book.settling(work), self._book.in_force.policy)
        if settled.retry is not None and await self._go_on(work, settled, settled.retry):
            await self._bus.delete(WORK, letter.seq)

    async def _started(self, work: WorkItem) -> AttemptStarted | None:
        """The latest execution of this attempt."""
        letter = await self._bus.last(EVENTS, str(Event(work.client, work.rid, "attempt_started")))
        started = AttemptStarted.decode(letter.data) if letter else None
        return started if started and started.attempt_id.startswith(f"{work.attempt}.") else None

    def _outcome(self, work: WorkItem, why: Why, started: AttemptStarted | None) -> Outcome:
        """What the node will not say any more: what was started may have cost anything."""
        node, now_ms = work.target.node, self._bus.now_ms()
        words = f"{node} drains" if why == "drains" else f"{node} is not heard any more"
        provider = started.provider if started else work.target.provider
        began_ms = started.started_ms if started else now_ms
        return Outcome(
            work=work,
            attempt_id=started.attempt_id if started else attempt_id(work.attempt, 0),
            node=node,
            provider=provider,
            failure=Failure(kind=FailureKind.NODE_LOST, message=words),
            called=started is not None,
            stand_in=provider != work.target.provider,
            timings=AttemptTimings(queue_ms=max(0, began_ms - work.sent_ms), total_ms=max(0, now_ms - began_ms)),
        )

    async def _go_on(self, work: WorkItem, settled: Settlement, retry: WorkItem) -> bool:
        """The successor first: a node that comes back now must not find the record of a move that was never made."""
        try:
            stored = await send_work(self._bus, retry)
        except TooLargeError as error:
            log.warning("move.too_large", client=work.client, rid=work.rid, error=str(error))
            return False
        if not stored.duplicate:
            self._book.sent(retry.target)
        target = await self._where_it_lies(stored.seq, retry) if stored.duplicate else retry.target
        moved = AttemptEnded(
            client=work.client,
            rid=work.rid,
            attempt=settled.record,
            booking=settled.booking,
            next=target,
            why="node_lost",
        )
        await self._bus.publish(
            str(Event(work.client, work.rid, "attempt_ended")),
            moved.encode(),
            msg_id=message_id("attempt_moved", work.client, work.rid, work.attempt),
        )
        to = f"{target.model}@{target.node}"
        log.info("work.moved", client=work.client, rid=work.rid, away_from=work.target.node, to=to)
        return True

    async def _where_it_lies(self, seq: int, retry: WorkItem) -> Target:
        """Another router was quicker, and may have chosen differently."""
        letter = await self._bus.get(WORK, seq)
        return WorkItem.decode(letter.data).target if letter else retry.target
