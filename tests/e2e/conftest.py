"""A bus with two edges for all tests of a module; each test is a client of its own there."""

from collections.abc import AsyncIterator
from itertools import count

import pytest
import pytest_asyncio

from tests.support.edge import Edges, two_edges

NUMBERS = count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_edges() -> AsyncIterator[Edges]:
    async with two_edges() as edges:
        yield edges


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_edges_alone() -> AsyncIterator[Edges]:
    async with two_edges(serving=False) as edges:
        yield edges


@pytest.fixture
def two(module_edges: Edges) -> Edges:
    """With a router and a node behind them."""
    return module_edges.asking_as(f"client-{next(NUMBERS)}")


@pytest.fixture
def alone(module_edges_alone: Edges) -> Edges:
    """With nobody behind them: what is asked lies on the bus."""
    return module_edges_alone.asking_as(f"client-{next(NUMBERS)}")
