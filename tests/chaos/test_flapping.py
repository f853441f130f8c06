"""A primary that comes and goes for a minute under steady traffic: everybody is served, it is hardly bothered."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from schemas import Reply
from schemas.policy import Limits
from tests.support.faults import AWAY, SILENT, ask, nothing_left, tried
from tests.support.scripted_upstream import Exchange, Script
from tests.support.upstreams import FIRST_TOKEN_MS, answering, upstreams

FLAPS_S = 60
PHASE_S = 10
"""Down for so long, then well for so long."""
EVERY_S = 4 / 20
BACK_WITHIN_S = 30
LIMITS = Limits()


async def ticks(seconds: float) -> AsyncIterator[float]:
    """Seconds since the beginning, at the pace of the traffic."""
    clock = asyncio.get_running_loop().time
    began = clock()
    while (now := clock() - began) < seconds:
        yield now
        await asyncio.sleep(EVERY_S)


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_a_primary_that_comes_and_goes() -> None:
    # Of a silent one so many have been asked before the first knows.
    asked_before = 1 + math.ceil(FIRST_TOKEN_MS / 1000 / EVERY_S)
    await asyncio.gather(flap(AWAY, LIMITS.breaker_failures), flap(SILENT, asked_before))


async def flap(fault: Script, opens_after: int) -> None:
    phase = 0
    called_in: Counter[int] = Counter()

    async def flapping(exchange: Exchange) -> None:
        called_in[phase] += 1
        await (fault if phase % 2 == 0 else answering("primary"))(exchange)

    async with upstreams() as up:
        up.primary.script = flapping
        asking: list[asyncio.Task[Reply]] = []
        async for at_s in ticks(FLAPS_S):
            phase = int(at_s // PHASE_S)
            asking.append(asyncio.create_task(ask(up, f"r{len(asking)}", stream=len(asking) % 2 == 0)))
        phase = FLAPS_S // PHASE_S + 1  # well for good
        back = False
        async for _ in ticks(BACK_WITHIN_S):
            asking.append(asyncio.create_task(ask(up, f"r{len(asking)}")))
            back = (await asking[-1]).model == "primary"
            if back:
                break
        assert back
        replies = await asyncio.gather(*asking)
        assert {reply.status for reply in replies} == {"ok"}
        assert {reply.model for reply in replies} == {"primary", "second"}
        assert max(len(reply.attempts) for reply in replies) <= 3, [tried(reply.attempts) for reply in replies]
        probes = PHASE_S * 1000 // LIMITS.breaker_open_ms
        for down in range(0, FLAPS_S // PHASE_S, 2):
            assert 1 <= called_in[down] <= opens_after + probes + 1, called_in
        await nothing_left(up)
