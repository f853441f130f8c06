"""What a bus meets once a month: full streams, strange subjects, lost acknowledgements, ids that are used twice."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from adapters.client import Client, RequestFailedError
from schemas import LlmRequest, Reply
from schemas import headers as h
from schemas.event import Replied
from subjects.streams import DEAD, EVENTS, OUTCOMES, REPLIES, REQUESTS, WORK, work_consumer
from tests.support.inside import POLICY, Inside, inside


async def change(whole: Inside, stream: str, **config: object) -> None:
    nc = whole.bus.client
    have = json.loads((await nc.request(f"$JS.API.STREAM.INFO.{stream}", b"")).data)["config"]
    answer = await nc.request(f"$JS.API.STREAM.UPDATE.{stream}", json.dumps({**have, **config}).encode())
    assert "error" not in json.loads(answer.data), answer.data


@asynccontextmanager
async def full(whole: Inside, stream: str) -> AsyncIterator[None]:
    """The stream takes nothing more until the context ends."""

    info = json.loads((await whole.bus.client.request(f"$JS.API.STREAM.INFO.{stream}", b"")).data)
    await change(whole, stream, max_bytes=max(1, info["state"]["bytes"]))
    try:
        yield
    finally:
        await change(whole, stream, max_bytes=info["config"]["max_bytes"])


async def chain_of(whole: Inside, rid: str) -> list[str]:
    subjects = [letter.subject async for letter in whole.bus.read(EVENTS, f"llm.evt.tester.{rid}.*")]
    return [subject.rpartition(".")[2] for subject in subjects]


@pytest.mark.parametrize("stream", [REPLIES, EVENTS, OUTCOMES])
async def test_a_stream_that_is_full_for_a_while_costs_no_answer_and_no_second_call(stream: str) -> None:
    async with inside() as whole:
        async with full(whole, stream):
            ask = asyncio.create_task(whole.client.ask("지금은 자리가 없다", capability="code", request_id="r1"))
            # Longer than the five deliveries after which a message used to be given up.
            await asyncio.wait([ask], timeout=4)
        reply = await ask
        assert reply.status == "ok"
        async with asyncio.timeout(10):
            while not {"decided", "attempt_started", "replied"} <= set(chain := await chain_of(whole, "r1")):
                await asyncio.sleep(0.05)
        assert chain.count("attempt_started") == 1
        assert not [letter async for letter in whole.bus.read(DEAD)]
        async with asyncio.timeout(10):
            while not await agreed(whole, "r1"):
                await asyncio.sleep(0.05)


async def agreed(whole: Inside, rid: str) -> bool:
    """The last record describes the reply that is stored."""
    stored = await whole.bus.last(REPLIES, f"llm.res.tester.{rid}")
    told = await whole.bus.last(EVENTS, f"llm.evt.tester.{rid}.replied")
    if stored is None or told is None:
        return False
    return Replied.decode(told.data).total_ms == Reply.decode(stored.data).timings.total_ms


async def test_a_subject_that_is_not_utf_8_disturbs_nobody() -> None:
    async with inside() as whole:
        host, port = whole.url.removeprefix("nats://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await reader.readline()
        writer.write(b'CONNECT {"verbose":false}\r\nPUB llm.req.\xff\xfe 2\r\nhi\r\nPING\r\n')
        while b"PONG" not in await reader.readline():
            pass
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(5):
            assert (await whole.client.ask("still here", capability="code")).status == "ok"
            while not [letter async for letter in whole.bus.read(DEAD, "llm.dead.bad_subject")]:
                await asyncio.sleep(0.02)


async def test_a_ticket_gets_the_reply_to_its_own_request_and_no_other() -> None:
    async with inside() as whole:
        first = await whole.client.submit("first", capability="code", request_id="r1")
        assert (await whole.client.result_of(first)).request_hash == first.request_hash
        second = await whole.client.submit("second", capability="code", request_id="r1")
        with pytest.raises(RequestFailedError) as refused:
            await whole.client.result_of(second)
        assert refused.value.error.type == "idempotency_conflict"
        assert (await whole.client.result_of(first)).status == "ok"


async def test_two_clients_may_use_the_same_message_id() -> None:
    async with inside() as whole, Client.connect(whole.url, "rival") as rival:
        for client, body in (("tester", b"mine"), ("rival", b"theirs")):
            await whole.bus.publish("llm.req.code", body, headers={h.CLIENT: client}, msg_id="1")
            await asyncio.sleep(0.15)  # the broker's own window for doubles
        for each in (whole.client, rival):
            reply = await each.result("1", timeout_s=5)
            assert reply is not None
            assert reply.status == "ok"


async def test_an_id_kept_for_others_is_refused_at_once() -> None:
    async with inside() as whole:
        with pytest.raises(RequestFailedError) as refused:
            await whole.client.ask("x", capability="code", request_id="seq-999")
        assert refused.value.error.type == "bad_request"


async def test_work_that_comes_back_while_it_is_in_hand_is_not_run_twice() -> None:
    slow = LlmRequest(prompt="x", metadata={"loopback": {"delay_ms": 1_500}})
    async with inside() as whole:
        spec = work_consumer("bench", "echo", "normal")
        ask = asyncio.create_task(whole.client.ask(slow, capability="code", request_id="r1"))
        async with asyncio.timeout(10):
            while await whole.bus.last(EVENTS, "llm.evt.tester.r1.attempt_started") is None:
                await asyncio.sleep(0.01)
        for delivered in range(1, 7):
            info = json.loads(
                (await whole.bus.client.request(f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.name}", b"")).data
            )
            # As if the acknowledgement time had lapsed while the broker was away.
            ack = f"$JS.ACK.{spec.stream}.{spec.name}.{delivered}.{info['delivered']['stream_seq']}.{delivered}.0.0"
            await whole.bus.client.publish(ack, b"-NAK")
            await whole.bus.fence()
        reply = await ask
        assert [attempt.attempt_id for attempt in reply.attempts] == ["1.1"]
        assert (await chain_of(whole, "r1")).count("attempt_started") == 1


async def test_a_request_stored_while_no_router_was_there_is_answered_when_one_comes() -> None:
    async with inside(routers=0) as whole:
        ticket = await whole.client.submit("아무도 없나요?", capability="code")
        assert await whole.bus.get(REQUESTS, ticket.seq) is not None
        await whole.start_router()
        assert (await whole.client.result_of(ticket)).status == "ok"


async def test_more_clients_than_the_door_keeps_open_are_answered_quickly() -> None:
    async with inside() as whole:
        nc = whole.bus.client
        asks = (nc.request(f"llm.ask.code.npc-{n}", b"hi", timeout=20) for n in range(300))
        async with asyncio.timeout(4):
            answers = await asyncio.gather(*asks)
        assert {(answer.headers or {})[h.STATUS] for answer in answers} == {"ok"}


async def test_work_that_would_not_fit_the_bus_is_refused_once() -> None:
    roomy = POLICY.replace("context_tokens: 100000", "context_tokens: 9000000")
    async with inside(policy=roomy) as whole:
        # A control character takes six bytes in JSON: under the limit as text, over the broker's as work.
        body = ("\x01" * 1_500_000).encode()
        await whole.bus.publish("llm.req.code", body, headers={h.CLIENT: "tester", h.REQUEST_ID: "r1"})
        reply = await whole.client.result("r1", timeout_s=10)
        assert reply is not None
        assert reply.error is not None
        assert reply.error.type == "payload_too_large"
        assert (await whole.client.ask("fine", capability="code")).status == "ok"


async def test_a_record_of_a_reply_that_never_was_does_not_stand_for_it() -> None:
    """A router that died between the two: the request comes again and is answered."""
    async with inside(routers=0) as whole:
        ticket = await whole.client.submit("{broken", capability="code", request_id="r1")
        replied = Replied(
            client="tester", rid="r1", request_hash=ticket.request_hash, status="error", error=None, total_ms=1.0
        )
        await whole.bus.publish("llm.evt.tester.r1.replied", replied.encode(), first=True)
        await whole.start_router()
        reply = await whole.client.result("r1", timeout_s=10)
        assert reply is not None
        assert reply.error is not None
        assert reply.error.type == "bad_request"
        async with asyncio.timeout(10):
            while not await agreed(whole, "r1"):
                await asyncio.sleep(0.05)


async def test_after_the_retention_an_id_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.dispatcher.ID_TAKEN_S", 1)
    async with inside() as whole:
        for stream in (WORK, OUTCOMES, EVENTS):
            await change(whole, stream, duplicate_window=200_000_000)
        await change(whole, REPLIES, max_age=500_000_000, duplicate_window=200_000_000)
        for prompt in ("the first", "the first", "another one"):
            reply = await whole.client.ask(prompt, capability="code", request_id="r1")
            assert reply.message is not None
            assert prompt in reply.message.content
            async with asyncio.timeout(10):
                while await whole.bus.last(REPLIES, "llm.res.tester.r1"):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1.2)  # the second for which the id is taken
        assert (await chain_of(whole, "r1")).count("decided") == 3
