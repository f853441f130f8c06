"""A router put together: the bus, the policy in force, and the services that share its work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from adapters.ask import asking
from adapters.bus import open_bus
from adapters.fleet import Fleet
from adapters.fleet import answering as answering_health
from ops.policy_in_force import SHIPPED, follow_policy, policy_changes, policy_store, shipped_policy
from router.canceller import Canceller
from router.dispatcher import Dispatcher
from router.errors import one_error, stop
from router.mover import Mover
from router.settler import Settler
from router.sweeper import Sweeper
from router.world_book import PolicyInForce, WorldBook

log = structlog.get_logger(__name__)


@asynccontextmanager
async def router(url: str, *, wait_s: float = 30.0) -> AsyncIterator[WorldBook]:
    """A router on the bus at `url`, its streams made where they are missing."""
    async with open_bus(url, name="llmbus router", wait_s=wait_s, make=True) as bus:
        store = await policy_store(bus)
        active = await store.active() or await store.seed(shipped_policy(), SHIPPED)
        book = WorldBook(bus, PolicyInForce(active.number, active.policy))
        fleet = Fleet(bus, lambda: book.in_force.policy)
        with one_error():
            async with (
                asyncio.TaskGroup() as tasks,
                policy_changes(bus) as changed,
                book.listening(),
                asking(bus),
                fleet.listening(),
                answering_health(bus, fleet),
                Settler(bus, book).running(),
                Canceller(bus, book).running(),
                Dispatcher(bus, book).running(),
            ):
                running = [
                    tasks.create_task(follow_policy(store, book, changed)),
                    tasks.create_task(Sweeper(bus, book).run()),
                    tasks.create_task(Mover(bus, book).run()),
                ]
                log.info("router.ready", policy=active.number)
                try:
                    yield book
                finally:
                    await stop(*running)
