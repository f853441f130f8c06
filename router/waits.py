"""Requests that wait to be decided anew: the broker brings each again at its time, or at once when it is called off."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from router.cancels import Cancels, Key
from router.errors import BusError
from router.ports import Bus, Rest
from router.sending import put_off, schedule
from schemas.base import Message
from subjects import Work
from subjects.grammar import Urgency
from subjects.streams import ROUTER

KEPT = 10_000
"""Those that this process has put off and not seen since; other routers may have decided them."""


class Waiting(Message):
    """A request that waits: where it stands in LLM_REQUESTS."""

    request_seq: int


class Waits:
    """Nobody sleeps on a wait, and it outlives this process."""

    def __init__(self, bus: Bus, cancels: Cancels) -> None:
        self._bus = bus
        self._cancels = cancels
        self._waiting: dict[Key, tuple[int, Urgency]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:

            def called_off(key: Key) -> None:
                if waits := self._waiting.pop(key, None):
                    tasks.create_task(self._end(*waits))

            self._cancels.on_cancel = called_off
            try:
                yield
            finally:
                self._cancels.on_cancel = lambda _key: None

    def begin(self, key: Key, request_seq: int, urgency: Urgency, until_ms: int) -> Rest:
        """Until that broker time."""
        self._waiting[key] = (request_seq, urgency)
        if len(self._waiting) > KEPT:
            del self._waiting[next(iter(self._waiting))]
        return partial(self._put, request_seq, urgency, until_ms)

    def over(self, key: Key) -> None:
        self._waiting.pop(key, None)

    async def _put(self, request_seq: int, urgency: Urgency, until_ms: int) -> None:
        """In place of an earlier one of the same request."""
        headers = schedule(until_ms, str(Work(ROUTER, "decide", urgency, f"seq-{request_seq}")))
        body = Waiting(request_seq=request_seq).encode()
        await self._bus.publish(put_off("delay", urgency, request_seq), body, headers=headers)

    async def _end(self, request_seq: int, urgency: Urgency) -> None:
        with suppress(BusError):  # then it ends at its time
            await self._put(request_seq, urgency, self._bus.now_ms())
