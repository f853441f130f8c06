"""A request that comes twice while the first one's router or broker dies: neither loses the other its answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from adapters.bus import JetStreamBus
from router.core.admit import admit
from router.core.decide import decide
from router.ports import Delivery, later
from router.waits import Waits
from router.world_book import WorldBook
from schemas import LlmRequest
from schemas import headers as h
from schemas.decision import Decided
from subjects import Request, parse
from subjects.streams import DISPATCHER, EVENTS, WORK
from tests.support.edge_openai import in_turn
from tests.support.faults import ask
from tests.support.inside import inside
from tests.support.openai_speech import error, refusing
from tests.support.upstreams import alone, answering, upstreams


@asynccontextmanager
async def in_hand(bus: JetStreamBus) -> AsyncIterator[asyncio.Queue[Delivery]]:
    """One request, as a router holds it that is about to die."""
    taken: asyncio.Queue[Delivery] = asyncio.Queue()

    async def take(delivery: Delivery) -> None:
        taken.put_nowait(delivery)

    async with bus.consume(DISPATCHER, later(take), batch=lambda: 1 - taken.qsize()):
        yield taken


async def record(bus: JetStreamBus, book: WorldBook, delivery: Delivery) -> str:
    """What a router records before it sends the work, and no work; the request's hash."""
    subject = parse(delivery.subject)
    assert isinstance(subject, Request)
    policy = book.in_force.policy
    asked = admit(subject, delivery.data, delivery.headers, delivery.seq, policy.limits)
    world = book.world(received_ms=delivery.timestamp_ms, request_seq=delivery.seq)
    decided = Decided(
        client=asked.client, rid=asked.rid, request_hash=asked.request_hash, request_seq=asked.seq,
        capability=asked.capability, world=world, decision=decide(asked, world, policy).decision,
    )  # fmt: skip
    await bus.publish(f"llm.evt.{asked.client}.{asked.rid}.decided", decided.encode())
    return asked.request_hash


async def only_the_first_is_in_hand(bus: JetStreamBus) -> None:
    async with asyncio.timeout(10):
        while True:
            answer = await bus.client.request(f"$JS.API.CONSUMER.INFO.{DISPATCHER.stream}.{DISPATCHER.name}", b"")
            info = json.loads(answer.data)
            if (info["num_pending"], info["num_ack_pending"]) == (0, 1):
                return


@pytest.mark.parametrize("second", ["먼저", "나중"], ids=["same-body", "other-body"])
async def test_a_double_that_overtakes_the_first_ones_work_does_not_take_its_place(second: str) -> None:
    named = {h.REQUEST_ID: "r1", h.CLIENT: "tester"}
    async with inside(nodes=False, routers=0) as whole, in_hand(whole.bus) as held:
        await whole.bus.publish("llm.req.code", LlmRequest(prompt="먼저").encode(), headers=named)
        first = await held.get()
        held.put_nowait(first)  # no second one is taken
        whole.book = await whole.start_router()
        await whole.pretend_node()
        request_hash = await record(whole.bus, whole.book, first)
        await whole.bus.publish("llm.req.code", LlmRequest(prompt=second).encode(), headers=named)
        await only_the_first_is_in_hand(whole.bus)
        await first.nak(0)
        await whole.start_node()
        reply = await whole.client.result("r1", timeout_s=10)
        assert reply is not None
        assert (reply.status, reply.request_hash) == ("ok", request_hash)
        async with asyncio.timeout(5):
            while await whole.bus.count(WORK, ">"):
                await asyncio.sleep(0.01)
        assert await whole.bus.count(EVENTS, "llm.evt.tester.r1.attempt_started") == 1


async def test_a_router_that_puts_a_request_off_again_does_not_replace_its_next_attempt() -> None:
    async with upstreams(alone) as up:
        bus, book = up.bus.bus, up.bus.book
        assert book is not None
        up.primary.script = in_turn(refusing(429, error("slow down"), Retry_After="1"), answering("다시 왔다"))
        asking = asyncio.create_task(ask(up))
        async with asyncio.timeout(10):
            while not (waiting := [letter async for letter in bus.read(WORK, "llm.work.router.*.*.*")]):
                await asyncio.sleep(0.01)
            seq = int(waiting[0].subject.rpartition("-")[2])
            await Waits(bus, book.cancels).begin(("tester", "r1"), seq, "normal", bus.now_ms() + 60_000)()
            reply = await asking
        assert (reply.status, up.calls) == ("ok", (2, 0, 0))
