"""What lies on a real broker is read back: in order, from anywhere, counted, single or all."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from adapters.bus import open_bus
from router.errors import UnavailableError
from router.ports import Letter
from subjects import Cancel, Event, Work
from subjects.streams import CANCELS, EVENTS, WORK
from tests.support.nats_server import OwnBroker


def name() -> str:
    return uuid4().hex


async def letters_of(letters: AsyncIterator[Letter]) -> list[Letter]:
    return [letter async for letter in letters]


async def test_messages_are_read_back_in_order_from_anywhere(nats_url: str) -> None:
    async with open_bus(nats_url, name="test", make=True) as bus:
        client = name()
        acks = [bus.send(str(Cancel(client, f"r{n}")), str(n).encode()) for n in range(600)]
        seqs = [(await ack).seq for ack in acks]
        letters = await letters_of(bus.read(CANCELS, f"llm.cancel.{client}.*"))
        assert [int(letter.data) for letter in letters] == list(range(600))
        assert [letter.seq for letter in letters] == seqs
        later = await letters_of(bus.read(CANCELS, f"llm.cancel.{client}.*", start_seq=seqs[590]))
        assert later == letters[590:]
        assert await letters_of(bus.read(CANCELS, f"llm.cancel.{name()}.*")) == []
        assert await letters_of(bus.read(CANCELS, start_seq=seqs[-1] + 10_000)) == []


async def test_messages_are_counted_and_the_newest_of_many_subjects_read_at_once(nats_url: str) -> None:
    async with open_bus(nats_url, name="test", make=True) as bus:
        client = name()
        seqs = [(await bus.publish(str(Cancel(client, f"r{n % 5}")), str(n).encode())).seq for n in range(20)]
        await bus.publish(str(Cancel(name(), "r0")), b"another's")
        every = f"llm.cancel.{client}.*"
        assert await bus.count(CANCELS, every) == 20
        assert [await bus.count(CANCELS, every, seq) for seq in (seqs[0], seqs[7], seqs[-1], seqs[-1] + 1)] == [
            20,
            13,
            1,
            0,
        ]
        assert await bus.count(CANCELS, f"llm.cancel.{name()}.*") == 0
        newest = await bus.lasts(CANCELS, [str(Cancel(client, rid)) for rid in ("r1", "r4", "nobody")])
        assert [letter.data for letter in newest] == [b"16", b"19"]
        assert await bus.lasts(CANCELS, []) == await bus.lasts(CANCELS, [str(Cancel(client, "nobody"))]) == []
        assert len(await letters_of(bus.read(CANCELS, every, batch=3))) == 20


async def test_large_messages_are_all_read(broker: OwnBroker) -> None:
    """The broker ends a batch early at some number of bytes; that is no end of the stream."""
    async with open_bus(broker.url, name="test", make=True) as bus:
        body = bytes(900_000)
        for n in range(90):
            await bus.publish(str(Event("npc-ai", f"r{n}", "decided")), body)
        count = 0
        async for _ in bus.read(EVENTS):
            count += 1
        assert count == 90


async def test_single_messages_are_found_or_not(nats_url: str) -> None:
    async with open_bus(nats_url, name="test", make=True) as bus:
        client = name()
        subject = str(Event(client, "r1", "decided"))
        assert await bus.last(EVENTS, subject) is None
        first = await bus.publish(subject, b"first", headers={"Llm-Status": "ok"})
        second = await bus.publish(subject, b"")
        newest, oldest = await bus.last(EVENTS, f"llm.evt.{client}.*.*"), await bus.get(EVENTS, first.seq)
        assert newest is not None
        assert oldest is not None
        assert (newest.seq, newest.data, dict(newest.headers)) == (second.seq, b"", {})
        assert (oldest.subject, oldest.data, dict(oldest.headers)) == (subject, b"first", {"Llm-Status": "ok"})
        assert await bus.get(EVENTS, second.seq + 10_000) is None
        with pytest.raises(UnavailableError):
            await bus.last("NOWHERE", subject)
        with pytest.raises(UnavailableError):
            await letters_of(bus.read("NOWHERE"))


async def test_work_is_deleted_and_the_record_cannot_be(nats_url: str) -> None:
    async with open_bus(nats_url, name="test", make=True) as bus:
        work = await bus.publish(str(Work("bench", name(), "normal", name())), b"x")
        event = await bus.publish(str(Event("npc-ai", name(), "accepted")), b"x")
        for _ in range(2):  # the second time it is gone, and that is no error
            await bus.delete(WORK, work.seq)
        assert await bus.get(WORK, work.seq) is None
        await bus.delete(EVENTS, event.seq)
        assert await bus.get(EVENTS, event.seq) is not None
