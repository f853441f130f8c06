"""The bus on a real broker: nothing accepted is lost or doubled, whatever is killed, and a refusal says what it is."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import uuid4

import nats
import nats.aio.client
import pytest

from adapters.bus import open_bus
from adapters.bus.clock import BusClock
from router.errors import ConflictError, TooLargeError, UnavailableError
from router.ports import Delivery, Letter, Question, later
from subjects import Dead, Event, Reply, Work
from subjects.streams import CHUNKS, DEAD, EVENTS, REPLIES, WORK, ConsumerSpec, work_consumer
from tests.support.nats_server import OwnBroker


def name() -> str:
    return uuid4().hex


async def letters_of(letters: AsyncIterator[Letter]) -> list[Letter]:
    return [letter async for letter in letters]


async def test_of_two_that_want_to_be_first_one_is(nats_url: str) -> None:
    async with open_bus(nats_url, name="test", make=True) as bus:
        subject = str(Reply("npc-ai", name()))
        results = await asyncio.gather(
            *(bus.publish(subject, f"{n}".encode(), first=True) for n in range(8)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, ConflictError)]
        assert len(refused) == 7
        stored = await bus.last(REPLIES, subject)
        assert stored is not None
        with pytest.raises(ConflictError):
            await bus.publish(subject, b"late")
        assert await bus.last(REPLIES, subject) == stored


async def test_a_message_id_is_stored_once(nats_url: str) -> None:
    async with open_bus(nats_url, name="test", make=True) as bus:
        subject, msg_id = str(Event("npc-ai", name(), "accepted")), name()
        stored = await asyncio.gather(*(bus.publish(subject, b"x", msg_id=msg_id) for _ in range(20)))
        assert len({each.seq for each in stored}) == 1
        assert sorted(each.duplicate for each in stored) == [False, *[True] * 19]
        assert len(await letters_of(bus.read(EVENTS, subject))) == 1


async def test_what_is_too_large_is_refused_here_and_the_connection_stays(nats_url: str) -> None:
    async with open_bus(nats_url, name="test", make=True) as bus:
        limit, subject = bus.client.max_payload, str(Dead("test"))
        connection = bus.client.client_id
        for data, headers in ((bytes(limit + 1), {}), (bytes(limit - 20), {"Llm-Reason": "헤더도 센다"})):
            with pytest.raises(TooLargeError):
                await bus.publish(subject, data, headers=headers)
        stored = await bus.publish(subject, bytes(limit - 200), headers={"Llm-Reason": "fits"})
        assert stored.stream == DEAD
        assert bus.client.client_id == connection


async def test_what_is_told_is_never_so_large_that_it_costs_the_connection(broker: OwnBroker) -> None:
    async with open_bus(broker.url, name="test", make=True) as bus:
        connection = bus.client.client_id
        with pytest.raises(TooLargeError):
            await bus.tell("llm.chunk.c.r.0", bytes(bus.client.max_payload + 1))
        await bus.publish(str(Dead("test")), b"still here")
        assert bus.client.client_id == connection


async def test_every_publish_survives_a_killed_broker_and_is_stored_once(broker: OwnBroker) -> None:
    async with open_bus(broker.url, name="test", make=True) as bus:
        acknowledged = 0
        killed = asyncio.Event()

        async def publish(n: int) -> None:
            nonlocal acknowledged
            await bus.publish(str(Event("npc-ai", f"r{n}", "accepted")), str(n).encode(), msg_id=f"id-{n}")
            acknowledged += 1
            if acknowledged == 100:
                killed.set()

        async def kill() -> None:
            await killed.wait()
            await asyncio.to_thread(broker.restart)

        async def all_of_them() -> None:
            for start in range(0, 600, 50):
                await asyncio.gather(*(publish(n) for n in range(start, start + 50)))

        await asyncio.wait_for(asyncio.gather(all_of_them(), kill()), 30)
        stored = await letters_of(bus.read(EVENTS))
        assert sorted(int(letter.data) for letter in stored) == list(range(600))


async def test_a_publish_that_is_given_up_is_not_sent_again(broker: OwnBroker) -> None:
    async with open_bus(broker.url, name="test", make=True) as bus:
        await asyncio.to_thread(broker.kill)
        async with asyncio.timeout(10):
            while bus.link().up:
                await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await bus.publish(str(Event("npc-ai", "r1", "accepted")), b"given up", msg_id="id-1")
        kept = asyncio.create_task(bus.publish(str(Event("npc-ai", "r2", "accepted")), b"kept", msg_id="id-2"))
        await asyncio.to_thread(broker.start)
        await asyncio.wait_for(kept, 10)
        assert [letter.data for letter in await letters_of(bus.read(EVENTS))] == [b"kept"]


async def test_what_a_broker_keeps_in_memory_has_its_stream_again_after_a_restart(broker: OwnBroker) -> None:
    async with open_bus(broker.url, name="test", make=True) as bus:
        await bus.publish("llm.chunk.npc-ai.r1.0", b"before")
        await asyncio.to_thread(broker.restart)
        async with asyncio.timeout(10):
            while True:
                with suppress(UnavailableError):
                    await bus.publish("llm.chunk.npc-ai.r1.1", b"after")
                    break
                await asyncio.sleep(0.01)
        assert [letter.data for letter in await letters_of(bus.read(CHUNKS))] == [b"after"]


async def test_the_link_says_since_when_it_stands_or_is_down(broker: OwnBroker) -> None:
    async with open_bus(broker.url, name="test", make=True, ping_s=1) as bus:
        begun = bus.link()
        assert begun.up
        assert begun.since_ms <= bus.now_ms()
        await asyncio.to_thread(broker.kill)
        async with asyncio.timeout(10):
            while bus.link().up:
                await asyncio.sleep(0.01)
            down = bus.link()
            assert begun.since_ms <= down.since_ms <= bus.now_ms()
            await asyncio.to_thread(broker.restart)
            while not bus.link().up:
                assert bus.link() == down
                await asyncio.sleep(0.01)
        assert bus.link().since_ms > down.since_ms


async def test_the_first_stays_the_first_through_a_killed_broker(broker: OwnBroker) -> None:
    async with open_bus(broker.url, name="test", make=True) as bus:
        waiting = [bus.send(str(Reply("npc-ai", f"r{n}")), str(n).encode(), first=True) for n in range(200)]
        await asyncio.to_thread(broker.restart)
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
        # A publish whose acknowledgement was lost meets itself: a conflict, and only reading back tells which.
        assert all(isinstance(each, ConflictError) for each in results if isinstance(each, BaseException))
        stored = await letters_of(bus.read(REPLIES))
        assert sorted(int(letter.data) for letter in stored) == list(range(200))


async def test_a_publish_that_no_stream_takes_says_so(nats_url: str) -> None:
    async with open_bus(nats_url, name="test", make=True) as bus:
        with pytest.raises(UnavailableError, match="no stream takes it"):
            await bus.publish(f"test.{name()}", b"x")


class Inbox:
    """A consumer's handler that keeps what it was handed and acknowledges it."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[Delivery] = asyncio.Queue()

    async def __call__(self, delivery: Delivery) -> None:
        await delivery.ack_sync()
        self.came.put_nowait(delivery)

    async def next(self) -> Delivery:
        async with asyncio.timeout(20):
            return await self.came.get()


def lane() -> tuple[ConsumerSpec, str]:
    """A lane of work nobody else has, and a subject of it."""
    node = name()
    return work_consumer(node, "coder", "normal"), str(Work(node, "coder", "normal", "r1"))


async def test_a_consumer_goes_on_after_the_broker_came_back(broker: OwnBroker) -> None:
    spec, subject = lane()
    async with open_bus(broker.url, name="test", make=True) as bus:
        inbox = Inbox()
        async with bus.consume(spec, later(inbox), batch=lambda: 8):
            for n in range(3):
                await bus.publish(subject, f"{n}".encode(), msg_id=f"{n}")
                assert (await inbox.next()).data == f"{n}".encode()
                await asyncio.to_thread(broker.restart)


async def test_a_consumer_that_was_deleted_is_made_again(broker: OwnBroker) -> None:
    spec, subject = lane()
    async with open_bus(broker.url, name="test", make=True) as bus:
        inbox = Inbox()
        async with bus.consume(spec, later(inbox), batch=lambda: 8):
            for n in range(3):
                await bus.publish(subject, f"{n}".encode())
                assert (await inbox.next()).data == f"{n}".encode()
                await bus.client.jetstream().delete_consumer(spec.stream, spec.name)


async def test_a_delivery_knows_where_it_comes_from(nats_url: str) -> None:
    spec, subject = lane()
    async with open_bus(nats_url, name="test", make=True) as bus:
        stored = await bus.publish(subject, "안녕".encode(), headers={"Llm-Attempt": "1"})
        inbox = Inbox()
        async with bus.consume(spec, later(inbox), batch=lambda: 1):
            delivery = await inbox.next()
        assert (delivery.subject, delivery.data, delivery.stream, delivery.seq) == (
            subject, "안녕".encode(), WORK, stored.seq,
        )  # fmt: skip
        assert delivery.headers["Llm-Attempt"] == "1"
        assert (delivery.delivered, delivery.pending) == (1, 0)
        assert abs(delivery.timestamp_ms - bus.now_ms()) < 5_000


async def test_what_nobody_was_handed_yet_is_counted(nats_url: str) -> None:
    spec, subject = lane()
    async with open_bus(nats_url, name="test", make=True) as bus:
        with pytest.raises(UnavailableError):
            await bus.waiting(spec)
        for n in range(3):
            await bus.publish(f"{subject.removesuffix('r1')}r{n}", b"x")
        inbox = Inbox()
        async with bus.consume(spec, later(inbox), batch=lambda: 1 - inbox.came.qsize()):
            await inbox.next()
            inbox.came.put_nowait(await inbox.next())
            assert await bus.waiting(spec) == 1


async def test_an_acknowledgement_that_is_awaited_has_arrived(nats_url: str) -> None:
    spec, subject = lane()
    async with open_bus(nats_url, name="test", make=True) as bus:
        stored = await bus.publish(subject, b"x")
        inbox = Inbox()
        async with bus.consume(spec, later(inbox), batch=lambda: 1):
            await inbox.next()
            assert await bus.get(WORK, stored.seq) is None
            assert (await bus.client.jetstream().consumer_info(WORK, spec.name)).num_ack_pending == 0


async def test_what_is_given_back_or_fails_comes_again_and_counts(nats_url: str) -> None:
    spec, subject = lane()
    seen: asyncio.Queue[int] = asyncio.Queue()

    async def handle(delivery: Delivery) -> None:
        seen.put_nowait(delivery.delivered)
        if delivery.delivered < 3:
            await delivery.nak(1)
        else:
            await delivery.ack()

    async with open_bus(nats_url, name="test", make=True) as bus:
        await bus.publish(subject, b"x")
        async with bus.consume(spec, later(handle), batch=lambda: 1):
            async with asyncio.timeout(10):
                assert [await seen.get() for _ in range(3)] == [1, 2, 3]


async def test_no_more_is_taken_than_there_is_room_for_and_leaving_waits(nats_url: str) -> None:
    spec, subject = lane()
    in_hand, most, done = 0, 0, 0
    full, finish = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        nonlocal in_hand, most, done
        in_hand += 1
        most = max(most, in_hand)
        if in_hand == 3:
            full.set()
        await finish.wait()
        await delivery.ack_sync()
        in_hand, done = in_hand - 1, done + 1

    async with open_bus(nats_url, name="test", make=True) as bus:
        for n in range(20):
            await bus.publish(subject, f"{n}".encode())
        async with bus.consume(spec, later(handle), batch=lambda: 3 - in_hand):
            await asyncio.wait_for(full.wait(), 10)
            await bus.fence()
            taken = (await bus.client.jetstream().consumer_info(WORK, spec.name)).num_ack_pending
            assert (in_hand, taken) == (3, 3)
            asyncio.get_running_loop().call_soon(finish.set)
        assert (in_hand, most) == (0, 3)
        assert done >= 3
        left = await bus.client.jetstream().consumer_info(WORK, spec.name)
        assert (left.num_pending, left.num_ack_pending) == (20 - done, 0)


async def test_the_clock_is_the_brokers(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    async with open_bus(nats_url, name="test", make=True) as bus:
        before = bus.now_ms()
        stored = await bus.publish(str(Dead("test")), b"x")
        letter = await bus.get(DEAD, stored.seq)
        assert letter is not None
        assert before - 1_000 <= letter.timestamp_ms <= bus.now_ms() + 1_000


def test_the_clock_steps_back_only_with_the_brokers_own() -> None:
    clock = BusClock()
    with pytest.raises(RuntimeError):
        clock.now_ms()
    now_s = time.monotonic()
    clock.set(1_000_000, now_s, now_s)
    first = clock.now_ms()
    assert first >= 1_000_000
    clock.set(998_000, now_s, now_s)  # a slower answer than the last one: no step back
    assert clock.now_ms() == first
    clock.set(900_000, now_s, now_s)  # the broker's own clock was set back: it is followed, not waited for
    assert 900_000 <= clock.now_ms() < 905_000
    clock.set(2_000_000, now_s - 0.2, now_s)  # asked 200 ms ago: on its way for half of that
    assert 2_000_100 <= clock.now_ms() < 2_005_000


async def test_a_service_answers_plain_requests_and_is_found(nats_url: str) -> None:
    subject = f"test.ask.{name()}"

    async def answer(question: Question) -> None:
        if question.data == b"fail":
            raise ZeroDivisionError
        for n in range(2):
            await question.respond(question.data.upper(), {"N": str(n), "Agent": question.headers.get("Agent", "")})

    async with (
        open_bus(nats_url, name="test", make=True) as bus,
        bus.serve(subject, answer, name="tester", about="test"),
    ):
        caller = await nats.connect(nats_url)
        try:
            await asyncio.gather(
                *(caller.request(subject, b"fail", timeout=0.05) for _ in range(2)), return_exceptions=True
            )
            replies = await asyncio.gather(*(caller.request(subject, f"q{n}".encode()) for n in range(50)))
            assert [reply.data for reply in replies] == [f"Q{n}".encode() for n in range(50)]
            found = json.loads((await caller.request("$SRV.INFO.tester")).data)
            assert [endpoint["subject"] for endpoint in found["endpoints"]] == [subject]
        finally:
            await caller.close()


async def test_no_broker_and_no_bus_are_told_apart_with_a_remedy(broker: OwnBroker) -> None:
    with pytest.raises(UnavailableError, match="carries no llmbus yet"):
        async with open_bus(broker.url, name="test"):
            pass
    broker.kill()
    with pytest.raises(UnavailableError, match=r"no nats-server answers within 0\.3 s.*NATS_URL"):
        async with open_bus(broker.url, name="test", wait_s=0.3):
            pass


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_leaving_does_not_wait_for_a_broker_that_is_gone(broker: OwnBroker, sign: signal.Signals) -> None:
    async with asyncio.timeout(9):
        async with open_bus(broker.url, name="test", make=True) as bus:
            broker.server.send_signal(sign)
            bus.send(str(Dead("test")), b"x", msg_id=name())


async def test_who_has_left_does_not_go_on_looking_for_a_broker(
    broker: OwnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = asyncio.Event()

    async def swallows(*_: object) -> None:
        """As `asyncio.wait_for` can, when what it awaits fails in the same moment."""
        connecting.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionRefusedError from None

    before = asyncio.all_tasks()
    async with open_bus(broker.url, name="test", make=True):
        monkeypatch.setattr(nats.aio.client.Client, "_connect_to_server", swallows)
        broker.kill()
        async with asyncio.timeout(10):
            await connecting.wait()
    async with asyncio.timeout(10):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.01)


@pytest.mark.docker
async def test_a_broker_in_a_container_is_as_good(container_nats_url: str) -> None:
    async with open_bus(container_nats_url, name="test", make=True, wait_s=20) as bus:
        stored = await bus.publish(str(Dead("test")), "컨테이너".encode(), msg_id=name())
        letter = await bus.get(DEAD, stored.seq)
        assert letter is not None
        assert letter.data.decode() == "컨테이너"
