"""Faults of a connection, on a real broker: what is on the way is neither lost, doubled nor heaped up."""

import asyncio
import gc
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest
import uvloop
from nats.aio.msg import Msg

from adapters.bus import connection, open_bus, publish
from adapters.bus.connection import BusClient
from adapters.bus.wire import frame
from router.consume import consuming
from router.errors import TooLargeError, UnavailableError, UnknownError
from router.ports import Delivery, later
from subjects import Dead, Work
from subjects.streams import WORK, work_consumer
from tests.support.nats_server import OwnBroker, start_server


@pytest.mark.parametrize("answer", [b"", b"hello", b"[]", b"{}", b'{"error": "x"}', b'{"stream": "LLM_DEAD"}'])
async def test_what_another_listener_answers_is_no_acknowledgement(
    nats_url: str, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(publish, "ACK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(publish, "GIVE_UP_S", 0.3)
    subject = f"test.{uuid4().hex}"
    async with open_bus(nats_url, name="test", make=True) as bus, await nats.connect(nats_url) as other:

        async def respond(msg: Msg) -> None:
            await other.publish(msg.reply, answer)

        await other.subscribe(subject, cb=respond)
        for _ in range(2):
            await other.flush()
        with pytest.raises(UnknownError):
            async with asyncio.timeout(10):
                await bus.publish(subject, b"x", msg_id="id-1")


async def test_of_publishes_sent_together_the_first_that_fails_may_be_awaited_only(nats_url: str) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    async with open_bus(nats_url, name="test", make=True) as bus:
        first, second = (bus.send(f"test.{uuid4().hex}", b"x") for _ in range(2))
        with pytest.raises(UnavailableError):
            await first
        await asyncio.wait([asyncio.ensure_future(second)])
        del first, second
        gc.collect()
    assert told == []


async def test_an_error_of_the_broker_is_no_end(nats_url: str) -> None:
    async with open_bus(nats_url, name="test", make=True) as bus:
        before = bus.client.client_id
        bus.client.wire.write(b"NONSENSE\r\n")
        async with asyncio.timeout(10):
            while bus.client.client_id == before or not bus.link().up:
                await asyncio.sleep(0.01)
            assert (await bus.publish(str(Dead("test")), b"x", msg_id=uuid4().hex)).seq


async def test_what_a_broker_has_come_to_refuse_is_refused_here_and_the_rest_goes_on(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 1MB")
    server, url = start_server(tmp_path, "-c", str(config))
    try:
        async with open_bus(url, name="test", make=True) as bus:
            config.write_text("max_payload: 100KB")
            server.send_signal(signal.SIGHUP)
            async with asyncio.timeout(10), await nats.connect(url) as other:
                while other.max_payload > 200_000:
                    await other.force_reconnect()
                    await asyncio.sleep(0.01)
            too_large = bus.send(str(Dead("test")), bytes(500_000), msg_id="1")
            fits = bus.send(str(Dead("test")), bytes(50_000), msg_id="2")
            async with asyncio.timeout(10):
                with pytest.raises(TooLargeError):
                    await too_large
                assert (await fits).seq == 1
    finally:
        server.kill()
        server.wait(10)


async def test_to_a_broker_that_stands_still_nothing_is_said_twice(
    broker: OwnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "ACK_TIMEOUT_S", 0.05)
    async with open_bus(broker.url, name="test", make=True) as bus:
        broker.server.send_signal(signal.SIGSTOP)
        try:
            acks = [bus.send(str(Dead("test")), bytes(900_000), msg_id=f"{n}") for n in range(30)]
            unsent = []
            for _ in range(3):
                await asyncio.sleep(3 * publish.RETRY_S)
                unsent.append(bus.client._transport._io_writer.transport.get_write_buffer_size())  # type: ignore[union-attr]
            assert 0 < max(unsent) < 27_100_000
        finally:
            broker.server.send_signal(signal.SIGCONT)
        async with asyncio.timeout(20):
            assert len({(await ack).seq for ack in acks}) == 30


def test_a_write_to_a_connection_that_was_just_cut_does_no_harm(nats_url: str) -> None:
    """As it runs for its users: uvloop raises where asyncio drops."""

    async def cut() -> None:
        async with open_bus(nats_url, name="test", make=True) as bus:
            bus.client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
            while bus.link().up:
                bus.client.wire.write(frame("test.x", "", b"", b"x"))
                bus.client.wire.flush()
                await asyncio.sleep(0)
            async with asyncio.timeout(10):
                assert (await bus.publish(str(Dead("test")), b"x", msg_id=uuid4().hex)).seq

    uvloop.run(cut())


async def test_while_the_broker_is_away_nobody_fails_for_what_is_not_promised(
    broker: OwnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PENDING_BYTES", 1 << 20)
    spec = work_consumer("bench", "coder", "normal")
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    go_on = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        came.put_nowait(delivery)
        await go_on.wait()

    async with open_bus(broker.url, name="test", make=True) as bus, bus.consume(spec, later(handle), batch=lambda: 1):
        await bus.publish(str(Work("bench", "coder", "normal", "r1")), b"x")
        delivery = await asyncio.wait_for(came.get(), 10)
        await asyncio.to_thread(broker.kill)
        async with asyncio.timeout(10):
            while bus.link().up:
                await asyncio.sleep(0.01)
        for n in range(20):
            await bus.tell(f"llm.chunk.npc-ai.r1.{n}", bytes(100_000))
            await delivery.working()
        for words in (bytes(60_000), bytes(10_000), bytes(1_000), b"x"):
            for _ in range(20):
                await bus.tell("llm.chunk.npc-ai.r1.0", words)
        await delivery.working()
        await delivery.nak(0)
        await delivery.ack()
        go_on.set()


async def test_a_connection_that_fell_silent_before_it_was_in_use_is_left(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BusClient, "flush", partialmethod(BusClient.flush, timeout=0.3))
    host, port = nats_url.removeprefix("nats://").split(":")
    left = asyncio.Event()
    relays: list[asyncio.Task[None] | None] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The second connection says nothing more after its handshake."""
        relays.append(asyncio.current_task())
        silent_one = len(relays) == 2
        there_reader, there_writer = await asyncio.open_connection(host, int(port))

        async def up() -> None:
            while data := await reader.read(65_536):
                there_writer.write(data)
            if silent_one:
                left.set()
            there_writer.transport.abort()

        async def down() -> None:
            said = b""
            while data := await there_reader.read(65_536):
                if not (silent_one and b"PONG" in said):
                    writer.write(data)
                said += data

        with suppress(ConnectionError):
            await asyncio.gather(up(), down())
        writer.transport.abort()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server, asyncio.timeout(20):
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with open_bus(url, name="test", make=True) as bus:
            bus.client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
            await left.wait()
            while not bus.link().up:
                await asyncio.sleep(0.01)
            assert (await bus.publish(str(Dead("test")), b"x", msg_id=uuid4().hex)).seq
            assert len(relays) == 3
        await asyncio.gather(*filter(None, relays))


async def test_what_was_on_its_way_to_one_who_left_is_given_back_at_once(nats_url: str) -> None:
    node = uuid4().hex
    spec = replace(work_consumer(node, "coder", "normal"), ack_wait_s=60)
    came: set[int] = set()
    some, every = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        came.add(delivery.seq)
        some.set()
        if len(came) == 300:
            every.set()
        await delivery.ack()

    async with open_bus(nats_url, name="test", make=True) as bus:
        work = [bus.send(str(Work(node, "coder", "normal", f"r{n}")), bytes(20_000)) for n in range(300)]
        await asyncio.gather(*work)
        async with bus.consume(spec, later(handle), batch=lambda: 128):
            await some.wait()
        async with bus.consume(spec, later(handle), batch=lambda: 128), asyncio.timeout(20):
            await every.wait()


async def test_who_is_told_to_stop_gives_back_what_a_broker_that_is_away_does_not_take(
    broker: OwnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "GIVE_UP_S", 0.3)
    spec = work_consumer("bench", "coder", "normal")
    begun, away = asyncio.Event(), asyncio.Event()

    async def handle(_delivery: Delivery) -> None:
        begun.set()
        await away.wait()
        await bus.publish(str(Dead("test")), b"x", msg_id="1")

    async with asyncio.timeout(30), open_bus(broker.url, name="test", make=True) as bus:
        async with consuming(bus, spec, later(handle), later(handle), max_in_flight=1, max_deliveries=5):
            stored = await bus.publish(str(Work("bench", "coder", "normal", "r1")), b"x")
            await begun.wait()
            await asyncio.to_thread(broker.kill)
            while bus.link().up:
                await asyncio.sleep(0.01)
            away.set()
        await asyncio.to_thread(broker.start)
        while not bus.link().up:
            await asyncio.sleep(0.01)
        assert await bus.get(WORK, stored.seq) is not None
