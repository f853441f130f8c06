"""The places of one model on one node: so many run at once, the most urgent goes first, then the oldest."""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from subjects.grammar import URGENCIES, Urgency


class Lane:
    """Bounded by `slots`; `waiting` counts what was taken from the bus and has no place yet."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.running = 0
        self._queue: list[tuple[int, int, int, asyncio.Future[None]]] = []
        """(urgency, sequence, arrival, turn): a message that came back may wait beside itself."""
        self._arrivals = count()
        self._waiting = dict.fromkeys(URGENCIES, 0)

    @property
    def waiting(self) -> int:
        return sum(self._waiting.values())

    def room(self, urgency: Urgency) -> int:
        """How many more of this urgency the node may take: what it could hold next."""
        return self.slots - self._waiting[urgency]

    @asynccontextmanager
    async def place(self, urgency: Urgency, seq: int) -> AsyncIterator[None]:
        """Wait for a place, then hold it."""
        if self.running >= self.slots or self._queue:
            await self._wait(urgency, seq)
        else:
            self.running += 1
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, urgency: Urgency, seq: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (URGENCIES.index(urgency), seq, next(self._arrivals), turn))
        self._waiting[urgency] += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place was given in the same moment: pass it on
            raise
        finally:
            self._waiting[urgency] -= 1

    def _leave(self) -> None:
        """Hand the place to the next in line, if there is one."""
        while self._queue:
            turn = heapq.heappop(self._queue)[-1]
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
