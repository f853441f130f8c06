"""Two machines by a cable, as ops/docs/two-machines.md sets them up: it is pulled, and put back."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters.bus import open_bus
from adapters.client import Client
from ops.broker import server_path
from schemas import AttemptEnded
from tests.chaos.test_lost_node import BEAT_MS, SILENT_MS, TWO_NODES, Stage
from tests.support.bus import Role
from tests.support.two_machines import NATS, Table, table, two_machines

ACK_WAIT_MS = 6_000

pytestmark = [pytest.mark.chaos, pytest.mark.netns, pytest.mark.timeout(180)]


@asynccontextmanager
async def stage(on: Table, directory: Path) -> AsyncIterator[Stage]:
    """`alpha` is the laptop, on which alone `only` is; `beta` is the Mac mini. Only alpha is started."""
    nodes = {"alpha": on.laptop, "beta": on.mini}
    async with (
        asyncio.timeout(150),
        two_machines(on, directory, TWO_NODES, nodes) as live,
        open_bus(live.url, name="looking") as bus,
        Client.connect(live.url, "game") as client,
    ):
        made = Stage(live, bus, client)
        await made.start("alpha")
        yield made


async def heard_again(on: Stage, node: str) -> None:
    """A heartbeat that is newer than now."""
    now_ms = on.bus.now_ms()
    while (await on.heartbeat(node)).timestamp_ms <= now_ms:
        await asyncio.sleep(0.1)


async def until(on: Stage, broker_ms: int) -> None:
    while on.bus.now_ms() < broker_ms:
        await asyncio.sleep(0.2)


async def test_the_laptop_is_away_for_longer_than_its_acknowledgements_and_comes_back(tmp_path: Path) -> None:
    with table() as cable:
        async with stage(cable, tmp_path) as on:
            tickets = await on.submit(2, first_ms=12_000)
            waits = await on.submit(2, first_ms=12_000, capability="only", first=6)
            await on.started(4)  # two routers keep no order: what is quick comes after
            tickets += await on.submit(4, first_ms=200, first=2)
            await on.queued("alpha", 8)
            await on.start("beta")
            cable.pull()
            last_ms = (await on.heartbeat("alpha")).timestamp_ms
            for ticket in tickets:
                assert (await on.client.result_of(ticket)).node == "beta", "the mini needs no cable to its own hub"
            await until(on, last_ms + SILENT_MS + 2 * ACK_WAIT_MS)
            await on.queued("alpha", 2)
            cable.plug()
            replies = await on.answers([*tickets, *waits])
            assert [reply.node for reply in replies[6:]] == ["alpha"] * 2
            await once_each(on, 8)


async def test_a_cable_pulled_and_put_back_at_once_costs_no_answer(tmp_path: Path) -> None:
    with table() as cable:
        async with stage(cable, tmp_path) as on:
            tickets = await on.submit(2, first_ms=3_000)
            await on.started(2)
            tickets += await on.submit(4, first_ms=200, first=2)
            await on.queued("alpha", 6)
            cable.pull()
            await until(on, (await on.heartbeat("alpha")).timestamp_ms + 2 * BEAT_MS)
            cable.plug()
            replies = await on.answers(tickets)
            assert {reply.node for reply in replies} == {"alpha"}
            await heard_again(on, "alpha")
            await once_each(on, 6)


async def once_each(on: Stage, count: int) -> None:
    replied = [letter.subject for letter in await on.events("replied")]
    assert len(replied) == len(set(replied)) == count
    for letter in await on.events("attempt_ended"):
        assert AttemptEnded.decode(letter.data).attempt.failure is not None


async def test_what_the_page_ends_with(tmp_path: Path) -> None:
    """From either machine: both are there, each answers, and the one that drains does no more."""
    with table() as cable:
        async with stage(cable, tmp_path) as on:
            await on.start("beta")
            for machine in (cable.mini, cable.laptop):
                shown = await asyncio.to_thread(cable.ask, machine, "nodes")
                assert re.search(r"^alpha .*heard", shown, re.MULTILINE)
                assert re.search(r"^beta .*heard", shown, re.MULTILINE)
                assert await answered_by(cable, machine, 6) == {"alpha", "beta"}
            said = await asyncio.to_thread(cable.ask, cable.mini, "node", "alpha", "--drain")
            assert said.startswith("alpha drains")
            assert await answered_by(cable, cable.laptop, 4) == {"beta"}
            said = await asyncio.to_thread(cable.ask, cable.laptop, "node", "alpha", "--resume")
            assert said == "alpha takes work\n"
            assert await answered_by(cable, cable.laptop, 6) == {"alpha", "beta"}


async def leaf_is_up(directory: Path) -> None:
    """It has made, and not lost, a link to the hub; it tries again every second."""
    while True:
        log = (directory / "leaf.log").read_text()
        if log.count("Leafnode connection created") > log.count("Leafnode connection closed"):
            return
        await asyncio.sleep(0.1)


async def answered_by(cable: Table, machine: str, count: int, *more: str) -> set[str]:
    said = [
        await asyncio.to_thread(cable.ask, machine, "ask", f"항구에 대한 하이쿠 {n}", "--capability", "code", *more)
        for n in range(count)
    ]
    return {node for each in said for node in re.findall(r"^coder@(\w+)", each, re.MULTILINE)}


async def test_a_caller_on_the_leaf_is_answered_by_both_and_again_once_the_cable_is_back(tmp_path: Path) -> None:
    with table() as cable:
        async with stage(cable, tmp_path) as on:
            await on.start("beta")
            leaf = Role(cable.on(cable.laptop, server_path(), "-c", str(NATS / "leaf.conf")), tmp_path / "leaf.log")
            leaf.start()
            try:
                await leaf_is_up(tmp_path)
                here = ("--nats-url", "nats://127.0.0.1:4222")
                assert await answered_by(cable, cable.laptop, 4, *here) == {"alpha", "beta"}
                said = await asyncio.to_thread(cable.ask, cable.laptop, "nodes", *here)
                assert re.search(r"^alpha .*heard", said, re.MULTILINE)
                cable.pull()
                await until(on, (await on.heartbeat("alpha")).timestamp_ms + SILENT_MS)
                cable.plug()
                await heard_again(on, "alpha")
                await leaf_is_up(tmp_path)
                assert await answered_by(cable, cable.laptop, 4, *here) == {"alpha", "beta"}
            finally:
                leaf.stop()
