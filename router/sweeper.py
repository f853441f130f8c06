"""The promise that every request ends: work whose time ran out is answered, whatever became of its node.

Only work that has lain for a while is looked at, so a bus that flows costs nothing to sweep. Every router does it; the
reply is written once.
"""

import asyncio
import heapq

import structlog
from pydantic import ValidationError

from router.core.settle import unanswered
from router.errors import BusError
from router.ports import Bus, Letter
from router.replies import write_reply
from router.world_book import WorldBook
from schemas import headers as h
from schemas.failure import ErrorType
from schemas.work import WorkItem
from subjects.streams import WORK

log = structlog.get_logger(__name__)

SWEEP_S = 1.0
SETTLED_MS = 3_000
"""Work younger than this is not looked at."""
GRACE_MS = 1_500
"""An executor that still lives reports the deadline itself."""


class Sweeper:
    def __init__(self, bus: Bus, book: WorldBook) -> None:
        self._bus = bus
        self._book = book
        self._next_seq = 1
        self._due: list[tuple[int, int]] = []
        """(deadline, sequence), soonest first."""

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep()
            except BusError as error:
                log.warning("sweep.failed", error=str(error))

    async def sweep(self) -> None:
        now_ms = self._bus.now_ms()
        async for letter in self._bus.read(WORK, start_seq=self._next_seq):
            if letter.timestamp_ms > now_ms - SETTLED_MS:
                break
            self._next_seq = letter.seq + 1
            deadline = letter.headers.get(h.DEADLINE_AT_MS, "")
            if deadline.isdigit():
                heapq.heappush(self._due, (int(deadline), letter.seq))
        while self._due and self._due[0][0] + GRACE_MS < now_ms:
            if letter_now := await self._bus.get(WORK, self._due[0][1]):
                await self._expire(letter_now)
            heapq.heappop(self._due)  # only now: a broker that is away must not make it forgotten

    async def _expire(self, letter: Letter) -> None:
        try:
            work = WorkItem.decode(letter.data)
        except ValidationError:
            return  # the executor buries it
        world = self._book.world(received_ms=work.received_ms, request_seq=work.request_seq)
        log.info("work.expired", client=work.client, rid=work.rid, node=work.target.node, model=work.target.model)
        why = f"no answer within its deadline; it waited for {work.target.model} on {work.target.node}"
        await write_reply(self._bus, unanswered(ErrorType.DEADLINE_EXCEEDED, work, world, why))
        await self._bus.delete(WORK, letter.seq)
