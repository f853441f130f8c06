"""A node's heartbeats, and what it knows of its own silences: routers move the work of a node that they do not hear."""

import asyncio
from collections.abc import Callable

from router.ports import Bus
from schemas.heartbeat import Heartbeat
from subjects.streams import NODES_BUCKET

HEARTBEAT_S = 1.0
BACKLOG_MS = 2_000
"""What comes so soon after a silence of ours may have been on its way since before it."""


class Pulse:
    """`silent_ms`: after so long without a word from us, our work is moved."""

    def __init__(self, bus: Bus, state: Callable[[], Heartbeat], silent_ms: int) -> None:
        self._bus = bus
        self._state = state
        self._silent_ms = silent_ms
        self._told_ms: int | None = None
        """When we last said that we are there."""
        self._returned_ms = 0
        """When we did so after a silence for which our work may have been moved."""

    async def beat(self) -> None:
        """Say once how this node is. Without a connection nobody would hear it."""
        if not self._bus.link().up:
            return
        now_ms = self._bus.now_ms()
        if self._told_ms is not None and now_ms - self._told_ms > self._silent_ms:
            self._returned_ms = now_ms
        self._told_ms = now_ms
        state = self._state()
        await self._bus.tell(f"$KV.{NODES_BUCKET}.{state.node}", state.encode())

    async def run(self, cut_off: Callable[[], None]) -> None:
        """Beat for ever; `cut_off` is called while the bus has been away for so long that we count as lost."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._told_ms is None:
                continue  # it begins to take work
            await self.beat()
            link = self._bus.link()
            if not link.up and self._bus.now_ms() - link.since_ms > self._silent_ms:
                cut_off()

    def may_be_moved(self, taken_ms: int) -> bool:
        """What came before we were silent for too long, or was on its way: this process slept, or was cut off."""
        silent_now = self._told_ms is not None and self._bus.now_ms() - self._told_ms > self._silent_ms
        return silent_now or taken_ms < self._returned_ms + BACKLOG_MS
