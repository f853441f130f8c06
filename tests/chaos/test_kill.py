"""kill -9 of router, executor and broker, 20 times each under 500 requests: one reply each, nothing left over."""

import asyncio
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Set

import pytest

from adapters.bus import JetStreamBus, open_bus
from router.errors import BusError
from schemas import LlmRequest, Reply
from schemas import headers as h
from schemas.decision import Decided
from schemas.event import Replied
from schemas.ids import message_id
from schemas.request import request_hash
from subjects import Event, Request, parse
from subjects.streams import EVENTS, OUTCOMES, REPLIES, REQUESTS, WORK
from tests.support.bus import LiveBus, live_bus

REQUESTS_SENT = 500
KILLS_EACH = 20
CLIENT = "trader"
PROMPTS = ("Place the stop at 2% below entry.", "오늘 포지션의 위험을 세 문장으로 요약해 주세요.")
ALL_ANSWERED_S = 60.0


async def publish(bus: JetStreamBus, rid: str, delay_ms: int, accepted: dict[str, str]) -> None:
    """Publish until it is accepted, as a client does."""
    prompt = f"{PROMPTS[len(rid) % 2]} #{rid}"
    request = LlmRequest(prompt=prompt, deadline_ms=600_000, metadata={"loopback": {"delay_ms": delay_ms}})
    body = request.encode()
    digest = request_hash("code", body)
    headers = {h.REQUEST_ID: rid, h.CLIENT: CLIENT}
    msg_id = message_id("request", CLIENT, rid, digest)
    while rid not in accepted:
        try:
            await bus.publish(str(Request("code")), body, headers=headers, msg_id=msg_id)
            accepted[rid] = digest
        except BusError:
            await asyncio.sleep(0.05)


async def burst_and_kill(live: LiveBus, bus: JetStreamBus, seed: random.Random) -> dict[str, str]:
    """Before every kill a burst, so that the victim has its hands full: request hash by id of what was accepted."""
    accepted: dict[str, str] = {}
    victims = [name for name in live.roles for _ in range(KILLS_EACH)]
    seed.shuffle(victims)
    numbers = iter(range(REQUESTS_SENT))
    share = math.ceil(REQUESTS_SENT / len(victims))
    async with asyncio.TaskGroup() as tasks:
        for name in victims:
            for n in itertools.islice(numbers, share):
                tasks.create_task(publish(bus, f"r{n}", seed.choice((0, 0, 20, 100)), accepted))
            await asyncio.sleep(seed.uniform(0, 0.02))
            await asyncio.to_thread(live.restart, name)
            await asyncio.sleep(seed.uniform(0.1, 0.6))
    return accepted


async def all_answered(bus: JetStreamBus, accepted: dict[str, str]) -> dict[str, list[bytes]]:
    """Every stored reply by request id, once there is one for each accepted request."""
    deadline = time.monotonic() + ALL_ANSWERED_S
    while True:
        replies: dict[str, list[bytes]] = {}
        async for letter in bus.read(REPLIES):
            replies.setdefault(letter.headers[h.REQUEST_ID], []).append(letter.data)
        missing = accepted.keys() - replies.keys()
        if not missing:
            return replies
        assert time.monotonic() < deadline, await found_of(bus, missing)
        await asyncio.sleep(0.5)


async def found_of(bus: JetStreamBus, missing: Set[str]) -> str:
    """Where the requests without a reply were last seen."""
    seen: dict[str, list[str]] = {rid: [] for rid in missing}
    for stream in (REQUESTS, EVENTS, WORK, OUTCOMES):
        async for letter in bus.read(stream):
            for rid in missing & {letter.headers.get(h.REQUEST_ID, ""), *letter.subject.split(".")}:
                seen[rid].append(f"{letter.subject}#{letter.seq}")
    return f"no reply to {seen}"


async def left_over(bus: JetStreamBus) -> int:
    """Messages in the work queues, after what was last delivered had time to be acknowledged."""
    left = -1
    for _ in range(40):
        left = 0
        for stream in (WORK, OUTCOMES):
            async for _letter in bus.read(stream):
                left += 1
        if left == 0:
            break
        await asyncio.sleep(0.5)
    return left


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_every_accepted_request_has_exactly_one_reply_whatever_is_killed() -> None:
    seed = random.Random(20261121)
    async with live_bus() as live, open_bus(live.url, name="chaos") as bus:
        supervisor = asyncio.create_task(live.supervise())
        accepted = await burst_and_kill(live, bus, seed)
        assert all(role.kills >= KILLS_EACH for role in live.roles.values())
        replies = await all_answered(bus, accepted)
        left = await left_over(bus)
        supervisor.cancel()

        assert len(accepted) == REQUESTS_SENT
        assert replies.keys() == accepted.keys()
        for rid, stored in replies.items():
            assert len(stored) == 1, f"{rid} has {len(stored)} replies"
            reply = Reply.decode(stored[0])
            assert (reply.request_id, reply.client, reply.request_hash) == (rid, CLIENT, accepted[rid])
            assert reply.status == "ok", reply.error
        assert left == 0
        await assert_chain_is_whole(bus, accepted)


async def assert_chain_is_whole(bus: JetStreamBus, accepted: dict[str, str]) -> None:
    """One decision each, naming the request as stored; started attempts; a record of the reply that is stored."""
    stored: dict[int, str] = {letter.seq: letter.headers[h.REQUEST_ID] async for letter in bus.read(REQUESTS)}
    kinds: Counter[tuple[str, str]] = Counter()
    last_replied: dict[str, Replied] = {}
    started: dict[str, set[str]] = {}
    async for letter in bus.read(EVENTS):
        address = parse(letter.subject)
        assert isinstance(address, Event)
        kinds[address.rid, address.kind] += 1
        if address.kind == "decided":
            decided = Decided.decode(letter.data)
            assert stored[decided.request_seq] == address.rid
        elif address.kind == "replied":
            last_replied[address.rid] = Replied.decode(letter.data)
        elif address.kind == "attempt_started":
            started.setdefault(address.rid, set()).add(letter.data.decode())
    for rid in accepted:
        assert kinds[rid, "decided"] == 1
        assert kinds[rid, "attempt_started"] >= 1
        replied = last_replied[rid]
        assert (replied.status, replied.request_hash) == ("ok", accepted[rid])
        assert replied.attempt is not None
        assert any(f'"attempt_id":"{replied.attempt.attempt_id}"' in start for start in started[rid])
