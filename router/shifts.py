"""A node's taking of work: begun, ended while what was taken is still in hand, and begun again beside that."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from router.errors import LlmbusError, one_error, stop
from router.ports import Bus, Handler
from subjects.streams import ConsumerSpec


class Source(NamedTuple):
    """One consumer's messages, who handles them, and how many more may be taken right now."""

    spec: ConsumerSpec
    handler: Handler
    room: Callable[[], int]


class Shifts:
    """One at a time takes; those before it may still have work in hand."""

    def __init__(self, bus: Bus, sources: Sequence[Source]) -> None:
        self._bus = bus
        self._sources = sources
        self._tasks: asyncio.TaskGroup | None = None
        self._at_work: set[asyncio.Task[None]] = set()
        self._more: dict[str, Callable[[], None]] = {}
        """By consumer, of the latest shift."""
        self._over: asyncio.Event | None = None
        """Of the shift that takes; None when none does."""

    @property
    def taking(self) -> bool:
        return self._over is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Shifts may be begun within; what is in hand at the end is cancelled."""
        with one_error():
            async with asyncio.TaskGroup() as self._tasks:
                try:
                    yield
                finally:
                    self._tasks = None
                    await stop(*self._at_work)

    async def begin(self) -> None:
        """Nothing happens when one takes already. Raises LlmbusError when a consumer cannot be had."""
        if self._over is not None or self._tasks is None:
            return
        over = self._over = asyncio.Event()
        opened: list[asyncio.Future[None]] = []
        for source in self._sources:
            opened.append(asyncio.get_running_loop().create_future())
            task = self._tasks.create_task(self._take(source, over, opened[-1]))
            self._at_work.add(task)
            task.add_done_callback(self._at_work.discard)
        failed = [each for each in await asyncio.gather(*opened, return_exceptions=True) if each is not None]
        if failed:
            over.set()
            if self._over is over:
                self._over = None
            raise failed[0]

    def end(self) -> None:
        """Take nothing more, of no source, from now on."""
        if self._over is not None:
            self._over.set()
            self._over = None

    def more(self, spec: ConsumerSpec) -> None:
        """More of this consumer may be taken than before."""
        self._more[spec.name]()

    async def finished(self, seconds: float) -> bool:
        """Whether nothing is in hand any more, after that time at the latest."""
        return not self._at_work or not (await asyncio.wait(self._at_work, timeout=seconds))[1]

    async def _take(self, source: Source, over: asyncio.Event, opened: asyncio.Future[None]) -> None:
        """Until it is over; then what is in hand is waited for."""

        def room() -> int:
            return 0 if over.is_set() else source.room()

        try:
            async with self._bus.consume(source.spec, source.handler, batch=room) as more:
                self._more[source.spec.name] = more
                opened.set_result(None)
                await over.wait()
        except LlmbusError as error:
            if opened.done():
                raise
            opened.set_exception(error)
