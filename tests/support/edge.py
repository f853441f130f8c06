"""An HTTP edge inside the test's own process, on a free port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from ops.edge import edge


@asynccontextmanager
async def edge_on(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client of an edge on the bus at `url`; `base_url` says where it is."""
    async with edge(url, port=0) as address, httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as http:
        yield http
