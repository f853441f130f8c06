"""A node that dies, sleeps or drains with work in hand and in its queue: each request is answered once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from adapters.bus import JetStreamBus, open_bus
from adapters.client import Client, Ticket
from ops.node import node
from router.ports import Letter
from schemas import AttemptEnded, AttemptStarted, FailureKind, Health, Heartbeat, LlmRequest, Reply
from subjects import NodeCall
from subjects.grammar import NodeVerb
from subjects.streams import EVENTS, NODES_BUCKET, OUTCOMES, REPLIES, WORK
from tests.support.bus import POLICY, LiveBus, live_bus
from tests.support.cable import cable

TWO_NODES = POLICY.with_name("two_nodes_policy.yaml")
SILENT_MS = 3_500
BEAT_MS = 1_000
PROMPTS = ("Sum up the fight at the bridge.", "다리 위의 전투를 두 문장으로 요약해 주세요.")


@dataclass(slots=True)
class Stage:
    live: LiveBus
    bus: JetStreamBus
    client: Client

    async def submit(self, count: int, *, first_ms: int, capability: str = "code", first: int = 0) -> list[Ticket]:
        """The first two, for which there are places, take so long; the others are quick. Ids are counted on."""
        return [
            await self.client.submit(
                LlmRequest(
                    prompt=f"{PROMPTS[n % 2]} #{n}", deadline_ms=120_000,
                    metadata={"loopback": {"delay_ms": first_ms if n - first < 2 else 200, "text": f"답 {n}"}},
                ),
                capability=capability,
                request_id=f"r{n}",
            )
            for n in range(first, first + count)
        ]  # fmt: skip

    async def events(self, kind: str, rid: str = "*") -> list[Letter]:
        return [letter async for letter in self.bus.read(EVENTS, f"llm.evt.*.{rid}.{kind}")]

    async def started(self, count: int) -> list[AttemptStarted]:
        """Once so many attempts were started."""
        while len(found := await self.events("attempt_started")) < count:
            await asyncio.sleep(0.05)
        return [AttemptStarted.decode(letter.data) for letter in found]

    async def waiting(self, node: str, model: str, count: int) -> None:
        """As many as it has places are in its hands by then, and wait there."""
        while (await self.tell(node, "health")).models[model].waiting < count:
            await asyncio.sleep(0.1)

    async def queued(self, node: str, count: int) -> None:
        while len([letter async for letter in self.bus.read(WORK, f"llm.work.{node}.>")]) != count:
            await asyncio.sleep(0.05)

    async def start(self, node: str) -> None:
        beat = await self.bus.client.subscribe(f"$KV.{NODES_BUCKET}.{node}", max_msgs=1)
        await self.bus.fence()
        self.live.roles[node].start()
        await beat.next_msg(30)

    async def heartbeat(self, node: str) -> Letter:
        letter = await self.bus.last(f"KV_{NODES_BUCKET}", f"$KV.{NODES_BUCKET}.{node}")
        assert letter is not None
        return letter

    async def tell(self, node: str, verb: NodeVerb) -> Health:
        return Health.decode((await self.bus.client.request(str(NodeCall(node, verb)), b"", timeout=5)).data)

    async def answers(self, tickets: Iterable[Ticket]) -> list[Reply]:
        """All of them, each the only one, and nothing left to be done."""
        replies = await asyncio.gather(*(self.client.result_of(ticket) for ticket in tickets))
        for n, reply in enumerate(replies):
            assert reply.error is None, reply.error
            assert reply.message is not None
            assert reply.message.content == f"답 {n}"
        for stream in (WORK, OUTCOMES):
            while [letter async for letter in self.bus.read(stream)]:
                await asyncio.sleep(0.1)
        stored = [letter.subject async for letter in self.bus.read(REPLIES)]
        assert len(stored) == len(set(stored)) == len(replies)
        return replies


@asynccontextmanager
async def stage(
    *, nodes: tuple[str, ...] = ("alpha",), later: tuple[str, ...] = ("beta",), routers: int = 1
) -> AsyncIterator[Stage]:
    async with (
        asyncio.timeout(150),
        live_bus(policy=TWO_NODES, nodes=nodes, later=later, routers=routers) as live,
        open_bus(live.url, name="looking") as bus,
        Client.connect(live.url, "game") as client,
    ):
        yield Stage(live, bus, client)


async def moves(on: Stage) -> list[tuple[int, AttemptEnded]]:
    """When each was moved, in broker time, and what is on record of it."""
    found = [(letter.timestamp_ms, AttemptEnded.decode(letter.data)) for letter in await on.events("attempt_ended")]
    return [(at_ms, ended) for at_ms, ended in found if ended.attempt.failure]


async def assert_moved_to_beta(on: Stage, rids: set[str], *, running: set[str]) -> None:
    """These and no others, once each; only what was running may have cost anything. There, each was run once."""
    moved = [ended for _, ended in await moves(on)]
    assert Counter(ended.rid for ended in moved) == Counter(rids)
    for ended in moved:
        assert ended.attempt.failure is not None
        assert ended.attempt.failure.kind is FailureKind.NODE_LOST
        assert ended.next is not None
        assert ended.next.node == "beta"
        booked = ("unknown", None) if ended.rid in running else ("wasted", 0)
        assert (ended.booking, ended.attempt.cost_usd) == booked
    assert Counter(each.rid for each in await on.started(len(rids)) if each.target.node == "beta") == Counter(rids)


@pytest.mark.chaos
@pytest.mark.timeout(180)
@pytest.mark.parametrize("routers", [1, 2])
async def test_what_a_killed_node_leaves_is_answered_elsewhere_exactly_once(routers: int) -> None:
    async with stage(routers=routers) as on:
        tickets = await on.submit(2, first_ms=8_000)
        running = {each.rid for each in await on.started(2)}
        tickets += await on.submit(20, first_ms=200, first=2)
        rids = {ticket.request_id for ticket in tickets}
        await on.queued("alpha", 22)
        await on.start("beta")
        on.live.roles["alpha"].kill()
        last_ms = (await on.heartbeat("alpha")).timestamp_ms
        assert {reply.node for reply in await on.answers(tickets)} == {"beta"}
        await assert_moved_to_beta(on, rids, running=running)
        assert min(at_ms for at_ms, _ in await moves(on)) <= last_ms + SILENT_MS + 3_000


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_what_nobody_else_can_take_waits_for_the_node_to_return() -> None:
    async with stage(later=()) as on:
        tickets = await on.submit(8, first_ms=3_000, capability="only")
        await on.started(2)
        on.live.roles["alpha"].kill()
        last_ms = (await on.heartbeat("alpha")).timestamp_ms
        while on.bus.now_ms() < last_ms + SILENT_MS + 2_000:
            await asyncio.sleep(0.2)
        await on.start("alpha")
        assert {reply.node for reply in await on.answers(tickets)} == {"alpha"}
        assert await moves(on) == []


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_a_node_that_slept_longer_than_its_acknowledgements_answers_for_nothing_that_was_moved() -> None:
    async with stage() as on:
        tickets = await on.submit(6, first_ms=12_000)
        running = {each.rid for each in await on.started(2)}
        assert len(running) == 2
        await on.start("beta")
        await on.waiting("alpha", "coder", 4)
        on.live.roles["alpha"].freeze()
        await on.answers(tickets)
        at_alpha = [each for each in await on.started(6) if each.target.node == "alpha"]
        slept_ms = on.bus.now_ms() - (await on.events("attempt_started"))[0].timestamp_ms
        assert slept_ms > 6_000, "longer than the acknowledgement time"
        on.live.roles["alpha"].thaw()
        # Its two calls end now, too late: booked at what they have cost in place of the unknown.
        while len(late := await superseded(on)) < len(running):
            await asyncio.sleep(0.1)
        while (coder := (await on.tell("alpha", "health")).models["coder"]).running + coder.waiting:
            await asyncio.sleep(0.05)
        late = await superseded(on)
        assert {each.rid for each in late} == running
        assert all(each.attempt.cost_usd and each.booking == "wasted" for each in late)
        assert [each for each in await on.started(6) if each.target.node == "alpha"] == at_alpha
        assert (await on.client.ask(LlmRequest(prompt="깨어났니?"), capability="only")).node == "alpha"


async def superseded(on: Stage) -> list[AttemptEnded]:
    found = [AttemptEnded.decode(letter.data) for letter in await on.events("attempt_ended")]
    return [ended for ended in found if ended.why == "superseded"]


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_a_node_that_drains_finishes_what_runs_and_the_rest_goes_elsewhere() -> None:
    async with stage() as on:
        tickets = await on.submit(12, first_ms=12_000)
        running = {each.rid for each in await on.started(2)}
        await on.start("beta")
        await on.waiting("alpha", "coder", 10)
        told = await on.tell("alpha", "drain")
        assert (told.draining, told.models["coder"].running) == (True, 2)
        while not Heartbeat.decode((await on.heartbeat("alpha")).data).draining:
            await asyncio.sleep(0.01)  # it was said, and is stored in a moment
        replies = await on.answers(tickets)
        assert {ticket.request_id for ticket, r in zip(tickets, replies, strict=True) if r.node == "alpha"} == running
        await assert_moved_to_beta(on, {ticket.request_id for ticket in tickets} - running, running=set())
        assert not (await on.tell("alpha", "resume")).draining
        assert (await on.client.ask(LlmRequest(prompt="다시 일하니?"), capability="only")).node == "alpha"


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_a_node_that_drains_keeps_what_nobody_else_can_take_until_it_resumes() -> None:
    async with stage(later=()) as on:
        tickets = await on.submit(5, first_ms=9_000, capability="only")
        await on.started(2)
        await on.waiting("alpha", "only", 3)
        await on.tell("alpha", "drain")
        await on.queued("alpha", 3)
        assert len(await on.events("attempt_started")) == 2
        await on.tell("alpha", "resume")
        assert {len(reply.attempts) for reply in await on.answers(tickets)} == {1}
        assert await moves(on) == []


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_a_router_that_slept_moves_nothing_of_nodes_that_live() -> None:
    async with stage(nodes=("alpha", "beta"), later=()) as on:
        tickets = await on.submit(12, first_ms=8_000)
        await on.started(2)
        on.live.roles["router0"].freeze()
        until_ms = on.bus.now_ms() + SILENT_MS + BEAT_MS
        while on.bus.now_ms() < until_ms:
            await asyncio.sleep(0.2)
        on.live.roles["router0"].thaw()
        await on.answers(tickets)
        assert await moves(on) == []


@pytest.mark.chaos
@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["silent", "reset"])
async def test_a_node_that_is_cut_off_lets_go_of_what_others_have_and_keeps_what_only_it_can_do(how: str) -> None:
    async with (
        stage(nodes=("beta",), later=()) as on,
        cable(on.live.url) as (link, url),
        node(url, "alpha") as alpha,
    ):
        own = await on.submit(1, first_ms=16_000, capability="only")
        shared = [*await on.submit(2, first_ms=16_000, first=1), *await on.submit(2, first_ms=16_000, first=3)]
        here = {each.rid for each in await on.started(5) if each.target.node == "alpha"} - {"r0"}
        assert here
        link.cut() if how == "silent" else link.pull()
        while alpha.state().models["coder"].running:
            await asyncio.sleep(0.05)
        assert alpha.state().models["only"].running == 1
        while {ended.rid for _, ended in await moves(on)} != here:
            await asyncio.sleep(0.05)
        await link.mend()
        replies = await on.answers([*own, *shared])
        assert {reply.request_id for reply in replies if reply.node == "alpha"} == {"r0"}
        (first, *_) = replies
        assert [each.attempt_id for each in first.attempts] == ["1.1"], "it was not run again"
        assert (await on.client.ask(LlmRequest(prompt="이어졌니?"), capability="only")).node == "alpha"
