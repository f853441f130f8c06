"""An HTTP edge inside the test's own process, on a free port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self

import httpx

from ops.edge import edge
from tests.support.inside import Inside, inside


@asynccontextmanager
async def edge_on(url: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client of an edge on the bus at `url`; `base_url` says where it is."""
    async with (
        edge(url, port=0, **settings) as address,
        httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as http,
    ):
        yield http


class Edges(NamedTuple):
    """Two edges of one bus. Tests that share them ask as clients of their own."""

    whole: Inside
    http: httpx.AsyncClient
    another: httpx.AsyncClient

    def asking_as(self, client: str) -> Self:
        for each in (self.http, self.another):
            each.headers["x-llm-client"] = client
        return self

    @property
    def client(self) -> str:
        return self.http.headers["x-llm-client"]


@asynccontextmanager
async def two_edges(*, serving: bool = True) -> AsyncIterator[Edges]:
    """Without `serving` there is no router and no node behind them."""
    async with (
        inside(nodes=serving, routers=int(serving)) as whole,
        edge_on(whole.url) as http,
        edge_on(whole.url) as another,
    ):
        yield Edges(whole, http, another)
