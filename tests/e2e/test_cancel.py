"""A request that is called off ends, whatever state it is in, and nobody else notices."""

import asyncio
import json
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from adapters.bus import JetStreamBus
from adapters.client import Client, RequestFailedError
from ops.policy_file import load_policy
from router.canceller import Canceller
from router.dispatcher import Dispatcher
from router.ports import Bus, Stored
from router.world_book import PolicyInForce, WorldBook
from schemas import LlmRequest, Reply
from schemas.event import Cancelled
from subjects import Cancel
from subjects.streams import CANCELLER, DEAD, EVENTS, REPLIES, WORK
from tests.support.faults import PROMPT, Held, ask, begin, both_ways, heard, nothing_left, told_of, tried, usd
from tests.support.inside import POLICY, inside
from tests.support.openai_speech import DONE, FINISH, USAGE, error, event, refusing
from tests.support.scripted_upstream import Exchange
from tests.support.upstreams import Policy, Upstreams, alone, one_slot, patient, upstreams


async def call_off(up: Upstreams, rid: str, client: str = "tester") -> None:
    await up.bus.bus.publish(str(Cancel(client, rid)), b"")


async def cancels_are_done(up: Upstreams) -> None:
    """Wait until the routers have acted on every cancellation."""
    subject = f"$JS.API.CONSUMER.INFO.{CANCELLER.stream}.{CANCELLER.name}"
    async with asyncio.timeout(5):
        while True:
            info = json.loads((await up.bus.bus.client.request(subject, b"")).data)
            if info["num_pending"] == info["num_ack_pending"] == 0:
                return
            await asyncio.sleep(0.01)


async def events(up: Upstreams, rid: str, client: str = "tester") -> list[str]:
    subjects = [letter.subject async for letter in up.bus.bus.read(EVENTS, f"llm.evt.{client}.{rid}.*")]
    return [subject.rpartition(".")[2] for subject in subjects]


async def recorded(up: Upstreams, rid: str) -> None:
    """Wait until the record says that it was called off and what it was told."""
    async with asyncio.timeout(5):
        while not {"cancelled", "replied"} <= set(await events(up, rid)):
            await asyncio.sleep(0.01)
    letter = await up.bus.bus.last(EVENTS, f"llm.evt.tester.{rid}.cancelled")
    assert letter is not None
    assert Cancelled.decode(letter.data).rid == rid


def assert_cancelled(reply: Reply) -> None:
    assert (reply.status, reply.message, reply.cost_usd) == ("cancelled", None, None)
    assert reply.error is not None
    assert (reply.error.type, reply.error.retryable) == ("cancelled", False)


@both_ways
async def test_while_it_generates_the_connection_is_closed_and_what_was_spent_is_booked(stream: bool) -> None:
    async with upstreams(one_slot) as up:
        up.primary.script = Held(asyncio.Event())
        asking = asyncio.create_task(ask(up, stream=stream))
        async with asyncio.timeout(5):
            await up.primary.arrived.wait()
            await told_of_first_token(up, stream)
            await call_off(up, "r1")
            await up.primary.exchanges[0].gone.wait()
            reply = await asking
        assert_cancelled(reply)
        assert tried(reply.attempts) == ["primary cancelled"]
        assert reply.error is not None
        assert reply.error.spent == "unknown"
        if stream:
            assert reply.wasted_usd == usd("primary", heard(5))
        await recorded(up, "r1")
        await told_of(up, "primary", lambda model: model.running == 0)
        up.primary.script = Held(open_gate())
        assert (await ask(up, "r2")).model == "primary", "its slot is free again"
        await nothing_left(up)
        assert up.calls == (2, 0, 0)


async def told_of_first_token(up: Upstreams, stream: bool) -> None:
    """Wait until the fifth piece is on the bus, where pieces are sent."""
    while stream and await up.bus.bus.last("LLM_CHUNKS", "llm.chunk.tester.r1.4") is None:
        await asyncio.sleep(0.01)


def open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@pytest.mark.parametrize("urgency", ["high", "normal"], ids=["in hand", "on the bus"])
async def test_while_it_is_queued_it_is_never_called(urgency: str) -> None:
    # The node takes one message of another urgency ahead of its turn; of the one that runs it has no place for more.
    go = asyncio.Event()
    async with upstreams(one_slot) as up:
        up.primary.script = Held(go)
        running = asyncio.create_task(ask(up, "r1"))
        await up.primary.arrived.wait()
        queued = asyncio.create_task(ask(up, "r2", urgency=urgency))
        async with asyncio.timeout(5):
            while await up.bus.bus.last(EVENTS, "llm.evt.tester.r2.decided") is None:
                await asyncio.sleep(0.01)
            await call_off(up, "r2")
            reply = await queued
        assert_cancelled(reply)
        assert reply.error is not None
        assert (reply.error.spent, reply.wasted_usd) == ("no", None)
        await recorded(up, "r2")
        assert not running.done()
        go.set()
        assert (await running).status == "ok"
        await nothing_left(up)
        assert up.calls == (1, 0, 0)


async def test_while_it_waits_for_a_node_it_ends_and_the_node_never_hears_of_it() -> None:
    async with upstreams(nodes=False) as up:
        asking = asyncio.create_task(ask(up))
        async with asyncio.timeout(5):
            while not [letter async for letter in up.bus.bus.read(WORK, "llm.work.router.>")]:
                await asyncio.sleep(0.01)
            await call_off(up, "r1")
            assert_cancelled(await asking)
        await up.bus.start_node()
        assert (await ask(up, "r2")).model == "primary"
        await nothing_left(up)
        assert up.calls == (1, 0, 0)


class Failing:
    """A bus on which no reply can be sent."""

    def __init__(self, bus: JetStreamBus) -> None:
        self._bus = bus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def send(self, subject: str, *args: Any, **settings: Any) -> Awaitable[Stored]:
        if subject.startswith("llm.res."):
            raise RuntimeError("dies here")
        return self._bus.send(subject, *args, **settings)


async def test_routers_that_die_over_a_cancellation_leave_the_work_to_its_node() -> None:
    async with inside(nodes=False, routers=0) as whole, AsyncExitStack() as parts:
        book = whole.book = WorldBook(whole.bus, PolicyInForce(1, load_policy(POLICY, "policy")))
        for part in (book.listening(), Dispatcher(whole.bus, book).running()):
            await parts.enter_async_context(part)
        await whole.pretend_node()
        asking = asyncio.create_task(whole.client.ask("취소할 것", capability="code", request_id="r1"))
        async with asyncio.timeout(15):
            while not await whole.bus.count(WORK, "llm.work.>"):
                await asyncio.sleep(0.01)
            async with Canceller(cast("Bus", Failing(whole.bus)), book).running():
                await whole.bus.publish(str(Cancel("tester", "r1")), b"")
                while await whole.bus.last(DEAD, "llm.dead.poison") is None:
                    await asyncio.sleep(0.01)
            await whole.start_node()
            await whole.start_router()
            with pytest.raises(RequestFailedError) as failed:
                await asking
        assert failed.value.error.type == "cancelled"


async def test_while_it_waits_for_a_breaker_it_ends_long_before_the_wait_does() -> None:
    async with upstreams(alone, breaker_failures=1, breaker_open_ms=60_000) as up:
        up.primary.script = refusing(401, error("bad key"))
        await ask(up, "r1")
        await told_of(up, "primary", lambda model: model.breaker == "open")
        asking = asyncio.create_task(ask(up, "r2"))
        async with asyncio.timeout(5):
            while not [letter async for letter in up.bus.bus.read(WORK, "llm.work.router.delay.>")]:
                await asyncio.sleep(0.01)
            await call_off(up, "r2")
            assert_cancelled(await asking)
        await nothing_left(up)
        assert up.calls == (1, 0, 0)


async def test_while_it_waits_for_the_time_that_its_target_gave_the_schedule_is_taken_back() -> None:
    async with upstreams(alone) as up:
        up.primary.script = refusing(429, error("slow down"), Retry_After="60")
        asking = asyncio.create_task(ask(up))
        async with asyncio.timeout(5):
            while not [letter async for letter in up.bus.bus.read(WORK, "llm.work.router.retry.>")]:
                await asyncio.sleep(0.01)
            await call_off(up, "r1")
            reply = await asking
        assert_cancelled(reply)
        assert tried(reply.attempts) == ["primary rate_limited"]
        await recorded(up, "r1")
        await nothing_left(up)
        assert up.calls == (1, 0, 0)


async def test_an_answer_that_is_there_wins() -> None:
    async with upstreams() as up:
        reply = await ask(up)
        async with asyncio.timeout(5):
            while (before := await up.bus.bus.last(REPLIES, "llm.res.tester.r1")) is None:
                await asyncio.sleep(0.01)
        await call_off(up, "r1")
        await cancels_are_done(up)
        assert await up.bus.bus.last(REPLIES, "llm.res.tester.r1") == before
        assert Reply.decode(before.data) == reply
        assert "cancelled" not in await events(up, "r1")


async def test_what_nobody_knows_is_left_alone() -> None:
    async with upstreams() as up:
        await call_off(up, "nobody")
        await cancels_are_done(up)
        assert [letter async for letter in up.bus.bus.read(REPLIES)] == []
        assert [letter async for letter in up.bus.bus.read(EVENTS)] == []
        assert [letter async for letter in up.bus.bus.read("LLM_DEAD")] == []
        assert (await ask(up, "r1")).status == "ok"


async def test_a_cancellation_that_overtakes_its_request_holds() -> None:
    async with upstreams() as up:
        await call_off(up, "r1")
        await cancels_are_done(up)
        assert_cancelled(await ask(up, "r1"))
        assert up.calls == (0, 0, 0)


async def test_the_same_id_of_another_client_is_not_touched() -> None:
    go = asyncio.Event()
    async with upstreams(patient) as up, Client.connect(up.bus.url, "rival") as rival:
        up.primary.script = Held(go)
        mine = asyncio.create_task(ask(up, "r1"))
        theirs = asyncio.create_task(rival.ask(LlmRequest(prompt=PROMPT), request_id="r1"))
        async with asyncio.timeout(5):
            while len(up.primary.exchanges) < 2:
                up.primary.arrived.clear()
                await up.primary.arrived.wait()
        await call_off(up, "r1")
        assert_cancelled(await mine)
        await cancels_are_done(up)
        assert not theirs.done()
        go.set()
        assert (await theirs).status == "ok"
        assert "cancelled" not in await events(up, "r1", "rival")
        await nothing_left(up)


async def test_twice_is_as_good_as_once() -> None:
    async with upstreams(patient) as up:
        up.primary.script = Held(asyncio.Event())
        asking = asyncio.create_task(ask(up))
        await up.primary.arrived.wait()
        await asyncio.gather(*(call_off(up, "r1") for _ in range(5)))
        assert_cancelled(await asking)
        await cancels_are_done(up)
        await recorded(up, "r1")
        assert (await events(up, "r1")).count("cancelled") == 1
        assert len([letter async for letter in up.bus.bus.read(REPLIES)]) == 1
        await nothing_left(up)


async def test_whenever_it_comes_there_is_one_reply_and_nothing_stays_behind() -> None:
    async def slowly(exchange: Exchange) -> None:
        async def work() -> None:
            await begin(exchange, 20)
            await asyncio.sleep(0.02)
            await exchange.chunk(FINISH + event(usage=USAGE) + DONE)
            await exchange.chunk(b"")

        at_work.add(exchange)
        await exchange.while_connected(work())
        at_work.discard(exchange)

    at_work: set[Exchange] = set()

    async def asked_and_called_off(up: Upstreams, n: int) -> Reply:
        asking = asyncio.create_task(ask(up, f"r{n}", stream=n % 2 == 0))
        if n % 4:
            await asyncio.sleep(n / 150)
            await call_off(up, f"r{n}")
        return await asking

    def few_slots(policy: Policy) -> None:
        patient(policy)
        policy["models"]["primary"]["slots"] = 8

    async with upstreams(few_slots) as up:
        up.primary.script = slowly
        replies = await asyncio.gather(*(asked_and_called_off(up, n) for n in range(100)))
        assert {reply.status for reply in replies} == {"ok", "cancelled"}
        assert {reply.status for reply in replies[::4]} == {"ok"}, "those that nobody called off"
        await cancels_are_done(up)
        await nothing_left(up)
        stored = [Reply.decode(letter.data) async for letter in up.bus.bus.read(REPLIES)]
        assert sorted(reply.request_id for reply in stored) == sorted(f"r{n}" for n in range(100))
        assert {reply.request_id: reply.status for reply in stored} == {r.request_id: r.status for r in replies}
        for reply in replies:
            if reply.status == "cancelled" and reply.decision != "refused:cancelled":
                await recorded(up, reply.request_id)
        await told_of(up, "primary", lambda model: model.running == model.waiting == 0)
        assert (await ask(up, "after")).status == "ok"
        async with asyncio.timeout(5):
            while at_work:
                await asyncio.sleep(0.01)
