"""The bench of real loads, with models small enough for a test."""

import pytest

from tests.bench.swap_real import REQUESTS, compare

pytestmark = pytest.mark.engine


async def test_a_real_server_loads_seldom_for_the_scheduler_and_every_time_in_order() -> None:
    ours, theirs = await compare(quick=True)
    assert theirs.loads == REQUESTS
    assert theirs.loads >= 5 * ours.loads, ours
