"""Prepared frames against a real broker: they arrive as nats-py's own publishes would, whatever stands in them."""

import asyncio

import pytest

from adapters.bus import connect
from adapters.bus.wire import check_size, frame, header_block
from router.errors import TooLargeError
from router.ports import Headers


@pytest.mark.parametrize(
    ("headers", "data"),
    [
        ({}, b""),
        ({}, "본문".encode()),
        ({"Llm-Request-Id": "r1"}, b""),
        ({"Llm-Request-Id": "r1", "Llm-Decision": "coder@macmini route=task:code", "Llm-Error": "오류"}, b"x" * 70_000),
    ],
)
async def test_a_frame_arrives_as_the_librarys_own_publish_does(
    nats_url: str, headers: dict[str, str], data: bytes
) -> None:
    async with connect(nats_url, name="test") as client:
        inbox = client.new_inbox()
        sub = await client.subscribe(inbox)
        await client.publish(inbox, data, reply="back.here", headers=headers or None)
        theirs = await sub.next_msg(5)
        client.wire.write(frame(inbox, "back.here", header_block(headers) if headers else b"", data))
        ours = await sub.next_msg(5)
        assert (ours.subject, ours.reply, ours.data, ours.headers) == (
            theirs.subject, theirs.reply, theirs.data, theirs.headers,
        )  # fmt: skip


@pytest.mark.parametrize("value", ["a\r\nNats-Msg-Id: forged", "a\nb", "a\rb", "\r\n\r\n+OK"])
async def test_a_header_value_cannot_start_another_line(nats_url: str, value: str) -> None:
    async with connect(nats_url, name="test") as client:
        inbox = client.new_inbox()
        sub = await client.subscribe(inbox)
        client.wire.write(frame(inbox, "", header_block({"Llm-Agent": value, "Llm-Client": "x"}), b"data"))
        msg = await sub.next_msg(5)
        assert msg.data == b"data"
        assert msg.headers is not None
        assert set(msg.headers) == {"Llm-Agent", "Llm-Client"}


async def test_what_is_too_large_is_refused_before_it_is_written(nats_url: str) -> None:
    async with connect(nats_url, name="test") as client:
        with pytest.raises(TooLargeError, match="more than the broker's"):
            check_size(client, "x", client.max_payload + 1)
        check_size(client, "x", client.max_payload)


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\nA: b\r\nLlm-Error: \xec\x98\xa4\xeb\xa5\x98\r\n\r\n",
        b"NATS/1.0\r\nA:b\r\nB:\t c:d \r\nA: again\r\nEmpty:\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\nA: b\r\n\r\n",
        b"NATS/1.0\r\nA : b\r\nsp ace: c\r\n\xff: d\r\nE: \xff\r\n\r\n",
        b"NATS/1.0\r\nA: b\r\n\r\nC: d\r\n\r\n",
        b"NATS/1.0\r\nA: b\r\n",
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n",
    ],
)
async def test_headers_are_read_on_a_direct_subscription_as_the_library_reads_them(nats_url: str, block: bytes) -> None:
    async with connect(nats_url, name="test") as client:
        inbox = client.new_inbox()
        heard: asyncio.Queue[Headers] = asyncio.Queue()
        sub = await client.subscribe(inbox)
        await client.subscribe_direct(inbox, lambda _subject, _reply, _data, headers: heard.put_nowait(headers))
        client.wire.write(frame(inbox, "", block, b"data"))
        theirs = (await sub.next_msg(5)).headers or {}
        assert dict(await asyncio.wait_for(heard.get(), 5)) == theirs


async def test_a_subscription_stands_before_what_is_written_after_it(nats_url: str) -> None:
    async with connect(nats_url, name="test") as client:
        for _ in range(50):
            inbox = client.new_inbox()
            heard = asyncio.Event()
            await client.subscribe_direct(inbox, lambda *_message, heard=heard: heard.set())
            client.wire.write(frame(inbox, "", b"", b"data"))
            client.wire.turn_over()
            await asyncio.wait_for(heard.wait(), 5)


async def test_what_is_in_no_hurry_goes_with_what_is_and_else_by_itself(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(nats_url, name="test") as client:
        inbox = client.new_inbox()
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        await client.subscribe_direct(inbox, lambda _subject, _reply, data, _headers: heard.put_nowait(data))
        await client.flush()
        writes: list[int] = []
        write = client._transport.writelines  # type: ignore[union-attr]

        def counted(frames: list[bytes]) -> None:
            writes.append(len(frames))
            write(frames)

        monkeypatch.setattr(client._transport, "writelines", counted)
        client.wire.write_later(frame(inbox, "", b"", b"first"))
        client.wire.turn_over()
        client.wire.write(frame(inbox, "", b"", b"second"))
        client.wire.turn_over()
        assert writes == [2]
        assert [await asyncio.wait_for(heard.get(), 5) for _ in range(2)] == [b"first", b"second"]
        client.wire.write_later(frame(inbox, "", b"", b"alone"))
        assert await asyncio.wait_for(heard.get(), 5) == b"alone"
        assert writes == [2, 1]


@pytest.mark.parametrize(
    "odd",
    [
        b"PUB %b \xff\xfe 2\r\nhi\r\n",
        b"HPUB %b 8 10\r\nNATS/1.0hi\r\n",
        b"HPUB %b 18 20\r\nNATS/1.0 503 \xff\r\n\r\nhi\r\n",
        b"HPUB %b 18 20\r\nNATS/1.0\r\n\xff: \xfe\r\n\r\nhi\r\n",
        b"HPUB %b 18 20\r\nNATS/1.0 5\xff0 x\r\n\r\nhi\r\n",
        b"HPUB %b 19 21\r\nNATS/1.0 \xec\x98\xa4\xeb\xa5\x98\r\n\r\nhi\r\n",
    ],
    ids=["reply", "no end", "status", "header", "number", "words for a number"],
)
async def test_whatever_the_server_takes_the_reading_goes_on(nats_url: str, odd: bytes) -> None:
    async with connect(nats_url, name="test") as client:
        inbox, before = client.new_inbox(), client.client_id
        heard: asyncio.Queue[bytes] = asyncio.Queue()
        await client.subscribe_direct(inbox, lambda _subject, _reply, data, _headers: heard.put_nowait(data))
        sub = await client.subscribe(inbox)
        client.wire.write(odd % inbox.encode() + frame(inbox, "", b"", b"next"))
        assert [await asyncio.wait_for(heard.get(), 5) for _ in range(2)] == [b"hi", b"next"]
        assert [(await sub.next_msg(5)).data for _ in range(2)] == [b"hi", b"next"]
        assert client.client_id == before
