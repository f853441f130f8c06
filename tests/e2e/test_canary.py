"""A key that upstreams quote wherever they can is found in nothing that this project stores, prints or raises."""

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator

import pytest

from adapters.client import RequestFailedError
from schemas import LlmRequest
from subjects.streams import BUCKETS, STREAMS
from tests.support.faults import CHUNKED, PROMPT, begin, nothing_left, told_of
from tests.support.openai_speech import CANARY, OTHER, error, event, refusing, streaming
from tests.support.scripted_upstream import JSON, Exchange, Script
from tests.support.upstreams import Policy, Upstreams, alone, upstreams

KEYS = {"CANARY_KEY": CANARY, "OTHER_KEY": OTHER}
TELLING = tuple(key[:12] for key in KEYS.values())
"""Half a key is a key told."""
WORDS = f"Incorrect API key provided: {CANARY}, {OTHER}"


async def in_headers(exchange: Exchange) -> None:
    told = {"WWW-Authenticate": f'Bearer realm="{CANARY}"', "Retry-After": CANARY, "X-Request-Id": OTHER}
    await exchange.reply(429, b"{}", {**JSON, **told})


async def in_reason(exchange: Exchange) -> None:
    await exchange.send(f"HTTP/1.1 500 {WORDS}\r\nContent-Length: 0\r\n\r\n".encode())


async def in_redirect(exchange: Exchange) -> None:
    await exchange.reply(302, WORDS.encode(), {"Location": f"{exchange.path}?key={CANARY}"})


async def in_no_http(exchange: Exchange) -> None:
    await exchange.send(f"HTTP/9 {WORDS}\r\n\r\n".encode())
    await exchange.end()


async def amid_answer(exchange: Exchange) -> None:
    await begin(exchange, 5)
    await exchange.chunk(event(None, error={"message": WORDS, "code": 401}))
    await exchange.chunk(b"")


async def amid_line(exchange: Exchange) -> None:
    await begin(exchange, 5)
    await exchange.chunk(f"data: {{{WORDS}".encode())
    await exchange.end("fin")


async def in_bad_chunk(exchange: Exchange) -> None:
    await exchange.head(200, CHUNKED)
    await exchange.send(f"{WORDS}\r\n".encode())
    await exchange.end()


LEAKS: dict[str, Script] = {
    **{f"{status}": refusing(status, error(WORDS)) for status in (400, 401, 403, 404, 429, 500, 503)},
    "content policy": refusing(400, error(WORDS, code="content_policy_violation")),
    "at the cut": refusing(500, b"x" * 4090 + WORDS.encode()),
    "headers": in_headers,
    "reason": in_reason,
    "redirect": in_redirect,
    "no http": in_no_http,
    "bad chunk": in_bad_chunk,
    "first event": streaming(event(None, error={"message": WORDS})),
    "amid the answer": amid_answer,
    "amid a line": amid_line,
    "malformed event": streaming(f"data: {{{WORDS}}}\n\n".encode()),
    "web page": streaming(f"<html>{WORDS}\n".encode()),
}


def keyed(policy: Policy) -> None:
    alone(policy)
    for provider in policy["providers"].values():
        provider["keys"] = list(KEYS)


async def stored(up: Upstreams) -> AsyncIterator[str]:
    """All that lies on the bus: every stream and bucket, bodies and headers."""
    for stream in (*(spec.name for spec in STREAMS), *(f"KV_{spec.name}" for spec in BUCKETS)):
        async for letter in up.bus.bus.read(stream):
            yield f"{stream} {letter.subject} {dict(letter.headers)} {letter.data.decode(errors='replace')}"


def raised(failed: RequestFailedError) -> str:
    """Its words, its facts and its frames with what they hold, but for those of the tests."""
    frames = traceback.TracebackException.from_exception(failed, capture_locals=True).format()
    ours = [frame for frame in frames if "/tests/" not in frame]
    return "\n".join((str(failed), repr(failed), repr(failed.reply), *ours))


def assert_untold(text: str) -> None:
    assert not [text[max(0, at - 100) :][:200] for half in TELLING if (at := text.find(half)) >= 0]


async def failing(up: Upstreams, *, stream: bool) -> RequestFailedError:
    with pytest.raises(RequestFailedError) as failed:
        await up.bus.client.ask(LlmRequest(prompt=PROMPT, stream=stream))
    return failed.value


async def test_no_key_is_told_whatever_the_upstream_says(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    # A refused key opens the breaker at once: the next request waits for it to be tried again.
    async with upstreams(keyed, environ=KEYS, breaker_open_ms=100, breaker_failures=1_000) as up:
        for name, leak in LEAKS.items():
            up.primary.script, asked = leak, len(up.primary.exchanges)
            for failed in await asyncio.gather(failing(up, stream=False), failing(up, stream=True)):
                assert failed.reply is not None, name
                assert failed.reply.attempts, name
                assert_untold(raised(failed))
            used = {exchange.headers["authorization"] for exchange in up.primary.exchanges[asked:]}
            assert used, name
            assert used <= {f"Bearer {key}" for key in KEYS.values()}
        await nothing_left(up)
        messages = [message async for message in stored(up)]
    assert len(messages) > 10 * len(LEAKS)
    for message in messages:
        assert_untold(message)
    out, err = capfd.readouterr()
    assert "key.set_aside" in out + err + caplog.text, "what is logged is seen here"
    assert_untold(out + err + caplog.text)


async def test_no_key_is_told_by_a_node_whose_upstream_refuses_it(capfd: pytest.CaptureFixture[str]) -> None:
    async with upstreams(keyed, nodes=False, environ=KEYS) as up:
        up.primary.listed, up.primary.script = None, LEAKS["401"]
        await up.bus.start_node()
        state = await told_of(up, "primary", lambda model: not model.usable)
        assert "CANARY_KEY" in (state.why_not or ""), "where it comes from is told"
        for message in [message async for message in stored(up)]:
            assert_untold(message)
    out, err = capfd.readouterr()
    assert "node.ready" in out + err
    assert_untold(out + err)
