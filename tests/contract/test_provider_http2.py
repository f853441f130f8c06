"""HTTP/2 where a server offers it over TLS, HTTP/1.1 where it does not; nothing is lost or left open either way."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import httpcore
import pytest
from pydantic import SecretStr

from adapters.providers.http2 import Http2Connection
from adapters.providers.openai import OpenAI
from router.errors import AttemptError
from router.ports import Progress
from schemas.failure import FailureKind
from tests.support.openai_speech import ASKED, CANARY, DONE, FINISH, PIECES, RECORDED, TEXT, call
from tests.support.tls_upstream import Exchange, Http2Upstream, tls_context


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    return tls_context(tmp_path, ["h2", "http/1.1"], monkeypatch)


async def recorded(exchange: Exchange) -> None:
    await exchange.send(RECORDED, end=True)


async def silent(exchange: Exchange) -> None:
    """Says nothing, until it is told to stop."""
    await exchange.stopped.wait()


async def failing(upstream: Http2Upstream) -> FailureKind:
    provider = OpenAI(upstream.url)
    with pytest.raises(AttemptError) as caught:
        await provider.chat(call(), Progress())
    await provider.aclose()
    return caught.value.failure.kind


async def test_a_server_that_offers_http2_is_spoken_to_in_http2_and_its_connection_kept(tls: ssl.SSLContext) -> None:
    async with Http2Upstream(tls, recorded) as upstream:
        provider = OpenAI(f"{upstream.url}/v1", keys=[SecretStr(CANARY)])
        for _ in range(3):
            assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    assert upstream.connections == 1
    asked = upstream.exchanges[2]
    assert (asked.headers[":path"], asked.headers["authorization"]) == ("/v1/chat/completions", f"Bearer {CANARY}")
    assert ASKED.encode() in asked.body


async def test_a_server_that_does_not_is_spoken_to_in_http11(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(await reader.readline())
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(RECORDED)}\r\n\r\n"
        writer.write(head.encode() + RECORDED)
        await reader.read()
        writer.close()

    context = tls_context(tmp_path, ["http/1.1"], monkeypatch)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        provider = OpenAI(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        calls = [provider.chat(call(), Progress()) for _ in range(5)]
        assert [(answer).text for answer in await asyncio.gather(*calls)] == [TEXT] * 5
        await provider.aclose()
    assert lines == [b"POST /chat/completions HTTP/1.1\r\n"] * 5


def test_before_its_first_call_a_connection_is_not_at_rest_and_what_its_server_says_is_no_goodbye() -> None:
    class Speaking(httpcore.AsyncMockStream):
        def get_extra_info(self, info: str) -> Any:
            return True if info == "is_readable" else super().get_extra_info(info)

    connection = Http2Connection(httpcore.Origin(b"https", b"example.com", 443), Speaking([], http2=True), None)
    assert not connection.is_idle()
    assert not connection.has_expired()


async def test_a_prompt_larger_than_any_window_gets_through(tls: ssl.SSLContext) -> None:
    prompt = "긴 글 " * 100_000
    async with Http2Upstream(tls, recorded) as upstream:
        provider = OpenAI(upstream.url)
        answer = await provider.chat(call(messages=[{"role": "user", "content": prompt}]), Progress())
        await provider.aclose()
    assert answer.text == TEXT
    assert prompt.encode() in upstream.exchanges[0].body


async def test_calls_at_a_time_have_each_a_connection_of_its_own(tls: ssl.SSLContext) -> None:
    met = asyncio.Barrier(5)

    async def script(exchange: Exchange) -> None:
        await exchange.send(PIECES)
        await met.wait()  # all five are under way
        await exchange.send(FINISH + DONE, head=False, end=True)

    async with Http2Upstream(tls, script) as upstream:
        provider = OpenAI(upstream.url)
        for _ in range(2):
            answers = await asyncio.gather(*(provider.chat(call(), Progress()) for _ in range(5)))
            assert [answer.text for answer in answers] == [TEXT] * 5
        await provider.aclose()
    assert upstream.connections == 5


@pytest.mark.parametrize("sent", [None, PIECES], ids=["before the head", "midway"])
async def test_cancelling_tells_the_server_to_stop_and_leaves_other_calls_alone(
    sent: bytes | None, tls: ssl.SSLContext
) -> None:
    asked = asyncio.Event()
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        if b"cancel me" in exchange.body:
            if sent is not None:
                await exchange.send(sent)
            asked.set()
            await silent(exchange)
        else:
            await exchange.send(PIECES)
            await go_on.wait()
            await exchange.send(FINISH + DONE, head=False, end=True)

    async with Http2Upstream(tls, script) as upstream, asyncio.TaskGroup() as group:
        provider = OpenAI(upstream.url)
        first = asyncio.Event()
        other = group.create_task(provider.chat(call(), Progress(lambda _piece: first.set())))
        await first.wait()
        heard = asyncio.Event()
        turns = [{"role": "user", "content": "cancel me"}]
        task = group.create_task(provider.chat(call(messages=turns), Progress(lambda _piece: heard.set())))
        await (asked if sent is None else heard).wait()
        task.cancel()
        await asyncio.wait_for(upstream.exchanges[1].stopped.wait(), 1)
        go_on.set()
        assert (await other).text == TEXT
        assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    assert task.cancelled()
    assert upstream.connections == 2


async def test_whenever_a_call_is_cancelled_no_connection_stays_behind(tls: ssl.SSLContext) -> None:
    async with Http2Upstream(tls, silent) as upstream:
        provider = OpenAI(upstream.url)

        async def cancelled_after(turns: int) -> None:
            task = asyncio.ensure_future(provider.chat(call(), Progress()))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        for turns in range(0, 240, 3):
            await asyncio.gather(*(cancelled_after(turns) for _ in range(3)))
        assert len(upstream.exchanges) > 20
        await asyncio.wait_for(upstream.all_gone(), 5)
        await provider.aclose()


async def test_a_server_that_says_goodbye_may_end_what_it_has_begun(tls: ssl.SSLContext) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(PIECES)
        await exchange.goodbye(2**31 - 1)
        await exchange.goodbye(exchange.stream)
        await exchange.send(FINISH + DONE, head=False, end=True)

    async with Http2Upstream(tls, script) as upstream:
        provider = OpenAI(upstream.url)
        for _ in range(3):
            assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    assert upstream.connections == 3  # and takes nothing more on that connection


async def test_a_call_that_the_server_never_took_goes_over_another_connection(tls: ssl.SSLContext) -> None:
    async def script(exchange: Exchange) -> None:
        if upstream.connections == 1 and exchange.stream > 1:
            await exchange.goodbye(1)
        else:
            await recorded(exchange)

    async with Http2Upstream(tls, script) as upstream:
        provider = OpenAI(upstream.url)
        for _ in range(2):
            assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    assert upstream.connections == 2


async def test_a_connection_that_was_closed_while_nobody_used_it_is_not_used_again(tls: ssl.SSLContext) -> None:
    async with Http2Upstream(tls, recorded) as upstream:
        provider = OpenAI(upstream.url)
        await provider.chat(call(), Progress())
        upstream.exchanges[0].connection.writer.transport.abort()
        await asyncio.wait_for(upstream.all_gone(), 5)
        assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    assert upstream.connections == 2


@pytest.mark.parametrize("how", ["reset", "closed", "garbage", "end of stream"])
async def test_an_answer_that_breaks_off_is_interrupted(how: str, tls: ssl.SSLContext) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(PIECES, end=how == "end of stream")
        if how == "reset":
            exchange.connection.h2.reset_stream(exchange.stream)
            await exchange.connection.flush()
        elif how == "closed":
            exchange.connection.writer.close()
        elif how == "garbage":
            exchange.connection.writer.write(b"\x00\x00\x04\x00\x00\x00\x00\x00\x00" + bytes(4))  # data of stream 0

    async with Http2Upstream(tls, script) as upstream:
        assert await failing(upstream) is FailureKind.INTERRUPTED
        await asyncio.wait_for(upstream.all_gone(), 5)


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    async with Http2Upstream(tls, recorded) as upstream:
        assert await failing(upstream) is FailureKind.CONNECTION
    assert not upstream.exchanges
