"""An HTTP edge inside the test's own process, on a free port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from ops.edge import edge


@asynccontextmanager
async def edge_on(url: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client of an edge on the bus at `url`; `base_url` says where it is."""
    async with (
        edge(url, port=0, **settings) as address,
        httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as http,
    ):
        yield http
