"""A whole bus inside the test's own process, on a real nats-server: broker, router, node `bench`, client."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.bus import JetStreamBus, connect, open_bus, provision
from adapters.client import Client
from ops.broker import broker
from ops.node import node
from ops.policy_store import PolicyStore
from ops.router import router
from router.world_book import WorldBook
from schemas import Heartbeat, ModelState
from subjects.streams import POLICY_BUCKET

POLICY = (Path(__file__).with_name("data") / "loopback_policy.yaml").read_text()


@dataclass(slots=True)
class Inside:
    """What a test may hold on to."""

    url: str
    client: Client
    bus: JetStreamBus
    """A connection of the test's own, for looking and meddling."""
    stack: AsyncExitStack
    environ: Mapping[str, str]
    """What the node finds its keys in."""
    book: WorldBook | None = None

    async def start_node(self, *, stand_in: bool = False) -> None:
        await self.stack.enter_async_context(node(self.url, "bench", stand_in=stand_in, environ=self.environ))

    async def pretend_node(self) -> None:
        """Node `bench` is heard of, and nothing is there to take its work."""
        model = ModelState(provider="loopback")
        beat = Heartbeat(node="bench", instance="i", version="0", models={"echo": model, "spare": model})
        await self.bus.tell("$KV.llm_nodes.bench", beat.encode())
        await self.heard("bench")

    async def heard(self, name: str) -> None:
        """Wait until the router knows of that node."""
        async with asyncio.timeout(5):
            while self.book is None or name not in self.book.nodes:
                await asyncio.sleep(0.01)

    async def start_router(self) -> WorldBook:
        return await self.stack.enter_async_context(router(self.url))

    async def apply(self, change: Callable[[str], str]) -> int:
        """A policy changed by `change`, applied; its revision."""
        store = PolicyStore(await self.bus.client.jetstream().key_value(POLICY_BUCKET))
        return (await store.apply(change(POLICY), "changed")).number


@asynccontextmanager
async def inside(
    *, nodes: bool = True, routers: int = 1, client: str = "tester", policy: str = POLICY,
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Inside]:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="llmbus-test-") as directory:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(broker(Path(directory), sync_interval="2m"))
            stack.push_async_callback(server.process.wait)
            stack.callback(server.process.kill)  # nothing of it is kept, and a polite end takes 200 ms
            async with connect(server.url, name="set-up") as nc:
                await provision(nc)
                store = PolicyStore(await nc.jetstream().key_value(POLICY_BUCKET))
                await store.apply(policy, "loopback_policy.yaml")
            bus = await stack.enter_async_context(open_bus(server.url, name="looking"))
            asker = await stack.enter_async_context(Client.connect(server.url, client))
            whole = Inside(server.url, asker, bus, stack, environ)
            for _ in range(routers):
                whole.book = await whole.start_router()
            if nodes:
                await whole.start_node()
            yield whole
