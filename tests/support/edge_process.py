"""An HTTP edge in a process of its own, whose memory is nobody else's."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psutil

from ops.edge import edge


@asynccontextmanager
async def edge_process(url: str) -> AsyncIterator[tuple[httpx.AsyncClient, psutil.Process]]:
    """A plain HTTP client of an edge on the bus at `url`, and its process."""
    command = (sys.executable, "-m", "tests.support.edge_process", url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        line = b""
        while not line.startswith(b"at "):
            line = await process.stdout.readline()
            assert line, "the edge has ended"
        address = line.decode().split()[1]
        async with httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as http:
            yield http, psutil.Process(process.pid)
    finally:
        process.kill()
        await process.communicate()


async def _serve(url: str) -> None:
    async with edge(url, port=0) as address:
        print("at", address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
