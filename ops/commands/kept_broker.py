"""The embedded broker, started again when it dies, and ended even when we are killed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from ops.broker import Broker, BrokerError, broker, start
from ops.commands.children import FIRST_PAUSE_S, LONGEST_PAUSE_S, WELL_S, Say, guarded, how_it_ended
from router.errors import one_error


@asynccontextmanager
async def kept_broker(store: Path, port: int, say: Say) -> AsyncIterator[Broker]:
    """A nats-server on `store`; port -1 is a free one. Raises BrokerError."""
    async with AsyncExitStack() as exits:
        try:
            first = await exits.enter_async_context(broker(store, port=port))
        except BrokerError as error:
            if "address already in use" not in str(error):
                raise
            raise BrokerError(
                f"port {port} is in use, perhaps by another nats-server; use that one with "
                f"`--nats-url nats://127.0.0.1:{port}`, or choose another port with `--port`"
            ) from None
        with one_error():
            async with asyncio.TaskGroup() as tasks:
                keeper = tasks.create_task(_keep(first, store, say))
                try:
                    yield first
                finally:
                    keeper.cancel()


async def _keep(current: Broker, store: Path, say: Say) -> None:
    """Start it again on the same port whenever it ends; ours to end when cancelled."""
    port = int(current.url.rpartition(":")[2])
    pause_s = FIRST_PAUSE_S
    while True:
        begun = time.monotonic()
        try:
            async with guarded(current.process.pid):
                code = await current.process.wait()
        finally:
            with suppress(ProcessLookupError):
                current.process.terminate()
            await current.process.wait()
        if time.monotonic() - begun > WELL_S:
            pause_s = FIRST_PAUSE_S
        say("broker", f"ended {how_it_ended(code)}; starts again in {pause_s:g} s", False)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        try:
            current = await start(store, port=port, monitor_port=-1, sync_interval="always")
        except BrokerError as error:
            say("broker", str(error), False)
        else:
            say("broker", "runs again", True)
