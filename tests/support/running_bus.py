"""A whole bus for end-to-end tests: a router and every node of the shipped policy, loopback in place of the models."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from ops.node import node
from ops.router import router


@asynccontextmanager
async def running_bus(url: str, *, routers: int = 1) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for _ in range(routers):
            await stack.enter_async_context(router(url))
        for name in ("macbook", "macmini", "cloud"):
            # Without the environment: no key, so nobody can be reached by accident.
            await stack.enter_async_context(node(url, name, stand_in=True, environ={}))
        yield
