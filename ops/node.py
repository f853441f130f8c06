"""A node put together: the bus, its backends as the policy has them, and the executor."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog

from adapters.bus import open_bus
from adapters.host import look
from ops.bench import Bench
from ops.policy_in_force import SHIPPED, policy_store, shipped_policy
from router.errors import one_error, stop
from router.executor import Executor
from router.node_door import answering

log = structlog.get_logger(__name__)

NODE_PING_S = 1
"""A node must notice in time that it is cut off."""


@asynccontextmanager
async def node(
    url: str, name: str, *, stand_in: bool = False, allow_crash: bool = False, wait_s: float = 30.0,
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Executor]:  # fmt: skip
    """The executor of node `name`, as the active policy describes it. Raises NodeUnknownError, KeyFileError.

    With `stand_in`, loopback answers for models whose backend is not usable, and says so.
    """
    async with open_bus(url, name=f"llmbus node {name}", wait_s=wait_s, make=True, ping_s=NODE_PING_S) as bus:
        store = await policy_store(bus)
        active = await store.active() or await store.seed(shipped_policy(), SHIPPED)
        bench = Bench(active.policy, name, stand_in=stand_in, allow_crash=allow_crash, environ=environ)
        try:
            served = await bench.serve()
            scheduler = bench.scheduler(bus.now_ms)
            executor = Executor(
                bus, name, {model: bench.seat(model, what, scheduler) for model, what in served.items()},
                instance=uuid.uuid4().hex[:12], version=version("llmbus"),
                max_deliveries=active.policy.limits.max_deliveries, silent_ms=active.policy.limits.node_silent_ms,
                host=look,
            )  # fmt: skip
            with one_error():
                async with (
                    asyncio.TaskGroup() as tasks,
                    scheduler.running(),
                    executor.running(),
                    answering(bus, executor, lambda: bench.backends),
                ):
                    probing = tasks.create_task(bench.probe_for_ever(executor))
                    log.info("node.ready", node=name, models={m: s.provider_name for m, s in served.items()})
                    try:
                        yield executor
                    finally:
                        await stop(probing)
        finally:
            await bench.aclose()
