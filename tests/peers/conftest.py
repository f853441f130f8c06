"""The peers, one process each for the run, clean for each test."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.support.aimock import Aimock, serving


@pytest.fixture(scope="session")
def aimock_url(pytestconfig: pytest.Config) -> Iterator[str]:
    assert pytestconfig.cache is not None
    with serving(pytestconfig.cache) as url:
        yield url


@pytest.fixture
async def aimock(aimock_url: str) -> AsyncIterator[Aimock]:
    async with httpx.AsyncClient(base_url=aimock_url, trust_env=False) as http:
        (await http.post("/__aimock/reset")).raise_for_status()
        (await http.delete("/__aimock/chaos")).raise_for_status()
        yield Aimock(http)
