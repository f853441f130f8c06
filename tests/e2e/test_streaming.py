"""Streamed answers on a real bus: whole, in order, watched by several, resumed, cancelled, over a plain door."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from adapters.client import Client, RequestFailedError
from adapters.streaming import AttemptIdError, Stream
from router.ports import Letter
from schemas import Chunk, LlmRequest, Reply, ReplyMessage, Timings
from schemas import headers as h
from schemas.failure import Error, ErrorType
from subjects.streams import CANCELS, CHUNKS, REPLIES
from tests.support.inside import Inside, inside

KOREAN = "안개 낀 항구 마을에 종소리가 울리고, 등대지기는 오래된 등불을 닦는다."
SOON_S = 10.0


def told(**how: Any) -> LlmRequest:
    """A request whose answer comes in pieces as told."""
    return LlmRequest(prompt="항구를 묘사해 줘", metadata={"loopback": {"text": KOREAN, **how}})


async def all_of(stream: Stream) -> tuple[list[Chunk], Reply]:
    """The pieces and the reply, which must be last."""
    items: list[Chunk | Reply] = []
    async with asyncio.timeout(SOON_S), stream:
        async for item in stream:
            items.append(item)
    *pieces, reply = items
    assert isinstance(reply, Reply)
    return [piece for piece in pieces if isinstance(piece, Chunk)], reply


def text_of(pieces: list[Chunk]) -> str:
    return "".join(piece.text for piece in pieces)


def places(pieces: list[Chunk]) -> list[tuple[str, int]]:
    return [(piece.attempt_id, piece.n) for piece in pieces]


async def piece(whole: Inside, n: int, attempt: str = "1.1", text: str | None = None) -> None:
    """What a node would send, stored."""
    chunk = Chunk(request_id="r1", attempt_id=attempt, n=n, text=f"{n}째 " if text is None else text)
    await whole.bus.publish(f"llm.chunk.tester.r1.{n}", chunk.encode())


async def end(whole: Inside, text: str) -> None:
    """The reply that a router would send."""
    answer = Reply(
        request_id="r1", client="tester", request_hash="", status="ok", message=ReplyMessage(content=text),
        timings=Timings(total_ms=1),
    )  # fmt: skip
    await whole.bus.publish("llm.res.tester.r1", answer.encode())


async def cancel_of(whole: Inside, rid: str) -> Letter:
    """The cancellation, once it is stored."""
    async with asyncio.timeout(SOON_S):
        while (letter := await whole.bus.last(CANCELS, f"llm.cancel.tester.{rid}")) is None:
            await asyncio.sleep(0.01)
    return letter


async def test_a_stream_brings_every_piece_in_order_and_the_reply_last() -> None:
    async with inside() as whole:
        pieces, reply = await all_of(whole.client.stream(told(pieces=40, piece_ms=1), capability="code"))
        assert places(pieces) == [("1.1", n) for n in range(len(KOREAN))]
        assert reply.message is not None
        assert text_of(pieces) == reply.message.content == KOREAN


async def test_plain_text_can_be_streamed_and_its_errors_are_typed() -> None:
    async with inside() as whole:
        pieces, reply = await all_of(whole.client.stream("안녕하세요 여러분", capability="code"))
        assert reply.message is not None
        assert text_of(pieces) == reply.message.content
        assert "안녕하세요 여러분" in text_of(pieces)
        for asked, capability, kind in (("x", "nowhere", "no_route"), (" ", "code", "bad_request")):
            with pytest.raises(RequestFailedError) as failed:
                await all_of(whole.client.stream(asked, capability=capability))
            assert failed.value.error.type == kind


async def test_many_streams_at_once_keep_apart() -> None:
    async with inside() as whole:
        asked = {f"r{n}": f"{n}번째 손님이 {KOREAN}" for n in range(30)}
        came = await asyncio.gather(
            *(all_of(whole.client.stream(told(text=text, pieces=20), capability="code", request_id=rid))
              for rid, text in asked.items())
        )  # fmt: skip
        for (pieces, reply), (rid, text) in zip(came, asked.items(), strict=True):
            assert (text_of(pieces), reply.request_id) == (text, rid)


async def test_several_watch_from_anywhere_and_each_gets_it_whole() -> None:
    async with inside() as whole, Client.connect(whole.url, "tester") as another:
        ticket = await whole.client.submit(
            told(pieces=40, piece_ms=10).model_copy(update={"stream": True}), capability="code"
        )
        watchers = [client.watch(ticket.request_id) for client in (whole.client, another, another)]
        for pieces, reply in await asyncio.gather(*map(all_of, watchers)):
            assert places(pieces) == [("1.1", n) for n in range(len(KOREAN))]
            assert reply.message is not None
            assert text_of(pieces) == reply.message.content == KOREAN
        late, reply = await all_of(another.watch(ticket.request_id))
        assert (text_of(late), reply.status) == (KOREAN, "ok")


async def test_who_left_comes_back_behind_the_last_piece_it_had() -> None:
    async with inside() as whole:
        ticket = await whole.client.submit(
            told(pieces=40, piece_ms=10).model_copy(update={"stream": True}), capability="code"
        )
        seen: list[Chunk] = []
        async with Client.connect(whole.url, "tester") as first, first.watch(ticket.request_id) as stream:
            async for item in stream:
                assert isinstance(item, Chunk)
                seen.append(item)
                if item.n == 7:
                    break
        last = seen[-1]
        async with Client.connect(whole.url, "tester") as second:
            rest, _reply = await all_of(second.watch(ticket.request_id, attempt_id=last.attempt_id, after=last.n))
        assert places(seen + rest) == [("1.1", n) for n in range(len(KOREAN))]
        assert text_of(seen + rest) == KOREAN
        assert await whole.bus.last(CANCELS, ">") is None, "who only watches cancels nothing"


async def test_another_attempt_starts_over_and_late_pieces_of_the_old_one_are_left_out() -> None:
    async with inside(nodes=False) as whole:
        for n in range(3):
            await piece(whole, n)
        stream = whole.client.watch("r1", attempt_id="1.1", after=0)
        coming = aiter(stream)
        assert places([await next_of(coming), await next_of(coming)]) == [("1.1", 1), ("1.1", 2)]
        await piece(whole, 0, "2.1", "")
        await piece(whole, 3, "1.1")
        await piece(whole, 1, "2.1")
        await piece(whole, 1, "10.1")
        await piece(whole, 0, "10.1")
        await end(whole, "0째 1째 ")
        pieces, reply = await all_of(stream)
        assert places(pieces) == [("2.1", 0), ("2.1", 1), ("10.1", 0), ("10.1", 1)]
        assert reply.message is not None
        assert reply.message.content == "0째 1째 "
        late, _reply = await all_of(whole.client.watch("r1", attempt_id="1.1", after=1))
        assert places(late) == [("10.1", 0), ("10.1", 1)], "what is over is not told again"


async def next_of(coming: AsyncIterator[Chunk | Reply]) -> Chunk:
    async with asyncio.timeout(SOON_S):
        item = await anext(coming)
    assert isinstance(item, Chunk)
    return item


async def test_what_a_lost_connection_missed_is_found_in_the_stream() -> None:
    async with inside(nodes=False) as whole, Client.connect(whole.url, "tester") as watcher:
        stream = watcher.watch("r1")
        await piece(whole, 0)
        assert (await next_of(aiter(stream))).n == 0
        watcher._bus.client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
        await asyncio.gather(*(piece(whole, n) for n in (1, 2)))
        async with asyncio.timeout(SOON_S):
            while not watcher._bus.client.is_connected:
                await asyncio.sleep(0.01)
        await piece(whole, 3)
        await end(whole, "0째 1째 2째 3째 ")
        pieces, _reply = await all_of(stream)
        assert [each.n for each in pieces] == [1, 2, 3]


async def test_pieces_that_are_nowhere_are_gone_on_without_and_the_reply_is_whole() -> None:
    async with inside(nodes=False) as whole:
        stream = whole.client.watch("r1")
        await piece(whole, 0)
        assert (await next_of(aiter(stream))).n == 0
        await whole.bus.publish("llm.chunk.tester.r1.1", b"no piece at all")
        await whole.bus.publish("llm.chunk.tester.r1.1", Chunk(request_id="r1", attempt_id="x", n=1).encode())
        await piece(whole, 2)
        assert (await next_of(aiter(stream))).n == 2
        await end(whole, "0째 1째 2째 ")
        pieces, reply = await all_of(stream)
        assert pieces == []
        assert reply.message is not None
        assert reply.message.content == "0째 1째 2째 "


async def test_watching_what_nobody_asked_ends_with_a_typed_error() -> None:
    async with inside() as whole:
        with pytest.raises(RequestFailedError, match="is the id right") as failed:
            await all_of(whole.client.watch("unheard-of", silence_s=0.2))
        assert (failed.value.error.type, failed.value.error.request_id) == ("deadline_exceeded", "unheard-of")
        with pytest.raises(AttemptIdError):
            await all_of(whole.client.watch("r1", attempt_id="first"))
        with pytest.raises(ValueError, match="needs `attempt_id`"):
            whole.client.watch("r1", after=3)


async def test_a_request_that_is_not_streamed_can_be_watched_for_its_end() -> None:
    async with inside() as whole:
        ticket = await whole.client.submit(told(delay_ms=50), capability="code")
        pieces, reply = await all_of(whole.client.watch(ticket.request_id))
        assert (pieces, reply.status) == ([], "ok")


async def test_a_cancellation_is_stored_and_a_cancelled_reply_is_an_error() -> None:
    async with inside(nodes=False) as whole:
        await whole.client.cancel("r1")
        letter = await whole.bus.last(CANCELS, "llm.cancel.tester.r1")
        assert letter is not None, "it returns when the bus has it"
        error = Error(type=ErrorType.CANCELLED, request_id="r1", message="its client cancelled it", retryable=False)
        cancelled = Reply.refused(client="tester", request_hash="", error=error, total_ms=1)
        await whole.bus.publish("llm.res.tester.r1", cancelled.encode())
        with pytest.raises(RequestFailedError) as failed:
            await all_of(whole.client.watch("r1"))
        assert failed.value.error.type == "cancelled"
        assert failed.value.reply is not None
        assert failed.value.reply.status == "cancelled"


async def test_who_cancels_an_ask_or_leaves_a_stream_cancels_its_request() -> None:
    slow = told(pieces=40, piece_ms=50)
    async with inside() as whole:
        ask = asyncio.create_task(whole.client.ask(told(delay_ms=2000), capability="code", request_id="asked"))
        async with whole.client.stream(slow, capability="code", request_id="left") as stream:
            async for _piece in stream:
                break
        assert await whole.bus.last(CANCELS, "llm.cancel.tester.left") is not None
        async for _piece in whole.client.stream(slow, capability="code", request_id="dropped"):
            break
        await cancel_of(whole, "dropped")
        ask.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ask
        assert await whole.bus.last(CANCELS, "llm.cancel.tester.asked") is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await all_of(whole.client.stream(slow, capability="code", request_id="late"))
        assert await whole.bus.last(CANCELS, "llm.cancel.tester.late") is not None


async def test_a_client_that_goes_right_after_leaving_still_cancels() -> None:
    async with inside() as whole:
        async with Client.connect(whole.url, "tester") as hasty:
            async for _piece in hasty.stream(told(pieces=40, piece_ms=50), capability="code", request_id="hasty"):
                break
        await cancel_of(whole, "hasty")


async def test_nothing_else_cancels() -> None:
    async with inside() as whole:
        ticket = await whole.client.submit(told(delay_ms=300), capability="code", request_id="kept")
        waiting = [
            asyncio.create_task(whole.client.result(ticket.request_id, timeout_s=10)),
            asyncio.create_task(all_of(whole.client.watch(ticket.request_id))),
        ]
        async with (
            asyncio.timeout(SOON_S),
            whole.client.stream(told(pieces=3), capability="code", request_id="whole") as stream,
        ):
            async for item in stream:
                if isinstance(item, Reply):
                    break
        for task in waiting:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert (await whole.client.result_of(ticket)).status == "ok"
        assert await whole.bus.last(CANCELS, ">") is None


async def test_the_synchronous_door_streams_to_a_plain_client() -> None:
    async with inside() as whole:
        nc = whole.bus.client
        inbox = nc.new_inbox()
        heard = await nc.subscribe(inbox)
        body = told(pieces=12).model_copy(update={"stream": True, "agent": "npc-ai", "request_id": "r1"})
        await nc.publish("llm.ask.code", body.encode(), reply=inbox)
        text = ""
        while h.STATUS not in (headers := (msg := await heard.next_msg(SOON_S)).headers or {}):
            told_piece = json.loads(msg.data)
            assert headers == {h.ATTEMPT: told_piece["attempt_id"]}
            text += told_piece["text"]
        assert text == json.loads(msg.data)["message"]["content"] == KOREAN
        assert (headers[h.STATUS], headers[h.REQUEST_ID], headers[h.CLIENT]) == ("ok", "r1", "npc-ai")
        assert h.ATTEMPT not in headers
        refused = await nc.request("llm.ask.nowhere", b'{"prompt": "x", "stream": true}', timeout=SOON_S)
        assert (refused.headers or {})[h.STATUS] == "error"
        assert [letter.subject async for letter in whole.bus.read(CHUNKS, "llm.chunk.npc-ai.r1.*")]
        assert await whole.bus.last(REPLIES, "llm.res.npc-ai.r1") is not None
