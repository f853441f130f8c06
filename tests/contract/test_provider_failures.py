"""Failures over HTTP, each with its kind and none with a key in it, over real TCP."""

import asyncio
import logging
import traceback
from typing import Any

import pytest
from pydantic import SecretStr

from adapters.providers.openai import OpenAI
from router.errors import AttemptError
from router.ports import Progress
from schemas.failure import FailureKind
from tests.support.openai_speech import (
    CANARY,
    DONE,
    OTHER,
    PIECES,
    RECORDED,
    TEXT,
    call,
    error,
    event,
    fail,
    refusing,
    streaming,
)
from tests.support.scripted_upstream import JSON, Ending, Exchange, ScriptedUpstream


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, error("bad temperature"), FailureKind.BAD_REQUEST),
        (404, error("no such model"), FailureKind.BAD_REQUEST),
        (422, b"not json \xff", FailureKind.BAD_REQUEST),
        (302, b"", FailureKind.BAD_REQUEST),
        (400, error("refused", code="content_policy_violation"), FailureKind.CONTENT_POLICY),
        (403, error("your input was flagged"), FailureKind.CONTENT_POLICY),
        (400, error("too long", code="context_length_exceeded"), FailureKind.CONTEXT_TOO_LONG),
        (413, b"", FailureKind.CONTEXT_TOO_LONG),
        (401, error("who are you"), FailureKind.AUTH),
        (402, [error("pay first")], FailureKind.AUTH),
        (403, b"", FailureKind.AUTH),
        (400, error("API key not valid. Please pass a valid API key."), FailureKind.AUTH),
        (429, error("money ran out", code="insufficient_quota"), FailureKind.AUTH),
        (429, error("slow down"), FailureKind.RATE_LIMITED),
        (408, b"", FailureKind.SERVER_ERROR),
        (409, b"", FailureKind.SERVER_ERROR),
        (500, error("oops"), FailureKind.SERVER_ERROR),
        (500, error("CUDA error: out of memory"), FailureKind.INSUFFICIENT_MEMORY),
        (500, error("model requires more system memory (52.0 GiB) than is"), FailureKind.INSUFFICIENT_MEMORY),
        (500, error("unable to allocate CUDA0 buffer"), FailureKind.INSUFFICIENT_MEMORY),
        (500, error("the memory of this session is gone"), FailureKind.SERVER_ERROR),
        (400, error("an essay on being out of memory"), FailureKind.BAD_REQUEST),
        (500, error("input (1201 tokens) is too large to process. increase the batch"), FailureKind.CONTEXT_TOO_LONG),
        (501, error("This server does not support embeddings"), FailureKind.UNSUPPORTED),
        (503, b"<html>", FailureKind.SERVER_ERROR),
        (529, error("overloaded"), FailureKind.SERVER_ERROR),
        (202, b"{}", FailureKind.MALFORMED),
    ],
)
async def test_statuses(status: int, body: Any, kind: FailureKind) -> None:
    failure = await fail(refusing(status, body))
    assert (failure.kind, failure.status, failure.retry_after_ms) == (kind, status, None)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ({"Retry_After": "2"}, 2000),
        ({"Retry_After": "0.5"}, 500),
        ({"Retry_After": "9", "retry_after_ms": "350"}, 350),
        ({"Retry_After": "Sat, 21 Nov 2026 10:00:30 GMT", "Date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 30_000),
        ({"Retry_After": "Sat, 21 Nov 2020 10:00:30 GMT"}, 0),
        ({"Retry_After": "-1"}, 0),
        ({"Retry_After": "1e300"}, 24 * 3600 * 1000),
        ({"Retry_After": "nan"}, None),
        ({"Retry_After": "soon"}, None),
    ],
)
async def test_retry_after(status: int, headers: dict[str, str], wait_ms: int | None) -> None:
    failure = await fail(refusing(status, b"{}", **headers))
    assert failure.retry_after_ms == wait_ms


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (event(None, error={"message": "oops"}), FailureKind.SERVER_ERROR),
        (event(None, error={"message": "slow down", "code": 429}), FailureKind.RATE_LIMITED),
        (event(None, error="context length exceeded"), FailureKind.CONTEXT_TOO_LONG),
        (PIECES + event(None, error={"message": "oops", "code": 502}), FailureKind.INTERRUPTED),
        (PIECES + event({}, "error") + DONE, FailureKind.INTERRUPTED),
        (b'data: {"choices": 5}\n\n', FailureKind.MALFORMED),
        (b'{"detail": "fine"}', FailureKind.MALFORMED),
        (DONE, FailureKind.MALFORMED),
    ],
    ids=range(8),
)
async def test_what_goes_wrong_within_a_200(body: bytes, kind: FailureKind) -> None:
    failure = await fail(streaming(body))
    assert failure.kind is kind
    assert len(failure.upstream or "") <= 4096


@pytest.mark.parametrize("status", [401, 402, 403, 429])
async def test_a_key_that_is_refused_or_over_its_rate_gives_way_to_the_next_within_the_attempt(status: int) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.headers["authorization"] == f"Bearer {OTHER}":
            await exchange.stream(RECORDED)
        else:
            await exchange.reply(status, b"{}", {**JSON, "Retry-After": "7"})

    async with ScriptedUpstream(script) as upstream:
        provider = OpenAI(upstream.url, keys=[SecretStr(CANARY), SecretStr(OTHER)], key_names=["A_KEY", "B_KEY"])
        for _ in range(5):
            assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    # It is asked once, then set aside.
    assert [e.headers["authorization"] for e in upstream.exchanges].count(f"Bearer {CANARY}") == 1


async def test_sound_keys_take_turns_and_when_all_are_refused_the_error_names_where_they_come_from() -> None:
    async with ScriptedUpstream(streaming(RECORDED)) as upstream:
        provider = OpenAI(upstream.url, keys=[SecretStr(CANARY), SecretStr(OTHER)], key_names=["A_KEY", "B_KEY"])
        for _ in range(4):
            await provider.chat(call(), Progress())
        assert [e.headers["authorization"][7:] for e in upstream.exchanges] == [CANARY, OTHER] * 2
        upstream.script = refusing(401, b"{}")
        with pytest.raises(AttemptError) as caught:
            await provider.chat(call(), Progress())
        assert caught.value.failure.kind is FailureKind.AUTH
        assert "A_KEY or B_KEY" in caught.value.failure.message
        assert len(upstream.exchanges) == 6
        upstream.script = streaming(RECORDED)
        assert (await provider.chat(call(), Progress())).text == TEXT  # none is left: the one longest at rest is tried
        await provider.aclose()


async def test_a_kept_connection_that_ends_in_the_moment_of_its_next_use_is_no_failure() -> None:
    async def script(exchange: Exchange) -> None:
        if len(upstream.exchanges) == 2:
            await exchange.end()
        else:
            await exchange.stream(RECORDED)

    async with ScriptedUpstream(script) as upstream:
        provider = OpenAI(upstream.url)
        for _ in range(2):
            assert (await provider.chat(call(), Progress())).text == TEXT
        assert (len(upstream.exchanges), upstream.connections) == (3, 2)
        await provider.aclose()


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_new_connection_that_ends_without_a_word_is_a_failure_and_one_call(how: Ending) -> None:
    async with ScriptedUpstream(lambda exchange: exchange.end(how)) as upstream:
        provider = OpenAI(upstream.url)
        with pytest.raises(AttemptError) as caught:
            await provider.chat(call(), Progress())
        assert caught.value.failure.kind is FailureKind.CONNECTION
        assert len(upstream.exchanges) == 1
        await provider.aclose()


async def test_whenever_a_call_is_cancelled_no_connection_stays_behind() -> None:
    async with ScriptedUpstream(Exchange.client_gone) as upstream:
        provider = OpenAI(upstream.url)

        async def cancelled_after(turns: int) -> None:
            task = asyncio.ensure_future(provider.chat(call(), Progress()))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        for turns in range(60):  # by then the request is on its way
            await asyncio.gather(*(cancelled_after(turns) for _ in range(5)))
        assert len(upstream.exchanges) > 50
        await asyncio.wait_for(upstream.all_gone(), 5)
        await provider.aclose()


LEAKS = {
    "refusal": refusing(401, error(f"Incorrect API key provided: {CANARY}")),
    "at the cut": refusing(400, b"x" * 4090 + CANARY.encode()),
    "in the stream": streaming(event(None, error={"message": f"bad key {CANARY}"})),
    "malformed": streaming(f"data: {{{CANARY}}}\n\n".encode()),
    "web page": streaming(f"<html>{CANARY}\n".encode()),
    "cut": lambda exchange: exchange.end("rst"),
    "no http": lambda exchange: exchange.send(f"HTTP/9 {CANARY}\r\n\r\n".encode()),
}


@pytest.mark.parametrize("leak", LEAKS)
async def test_a_key_is_never_told(leak: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with ScriptedUpstream(LEAKS[leak]) as upstream:
        provider = OpenAI(upstream.url, keys=[SecretStr(CANARY)])
        with pytest.raises(AttemptError) as caught:
            await provider.chat(call(), Progress())
        assert upstream.exchanges[0].headers["authorization"] == f"Bearer {CANARY}"
        await provider.aclose()
    told_error = caught.value
    ours = traceback.TracebackException.from_exception(told_error, capture_locals=True)
    frames = [line for line in ours.format() if "test_provider_failures" not in line]
    assert told_error.__context__ is None
    for told in (
        str(told_error),
        repr(told_error),
        told_error.failure.encode().decode(),
        repr(vars(provider)),
        *frames,
        caplog.text,
    ):
        assert CANARY[:12] not in told


@pytest.mark.parametrize("key", ["", " sk-canary", "sk-canary\n", "sk-카나리"])
def test_a_key_that_no_header_holds_is_refused_at_once(key: str) -> None:
    with pytest.raises(ValueError, match="key 1") as caught:
        OpenAI("http://127.0.0.1:9", keys=[SecretStr(key)])
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("url", [None, "", "127.0.0.1:11434", "ftp://x", "http://"])
def test_a_url_that_leads_nowhere_is_refused_at_once(url: str | None) -> None:
    with pytest.raises(ValueError, match="url"):
        OpenAI(url)
