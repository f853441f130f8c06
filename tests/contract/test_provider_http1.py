"""HTTP/1.1 as servers write it, well and badly: one provider over real TCP, byte by byte."""

import gzip

import pytest

from adapters.providers.openai import OpenAI
from router.ports import Progress
from schemas.failure import FailureKind
from tests.support.openai_speech import RECORDED, TEXT, call, fail
from tests.support.scripted_upstream import Exchange, Script, ScriptedUpstream

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SIZE = b"%x" % len(RECORDED)
CHUNK = SIZE + b"\r\n" + RECORDED + b"\r\n"
SIZED = HEAD + b"Content-Length: %d\r\n" % len(RECORDED)
PACKED = gzip.compress(RECORDED)
FORGED = SIZED + b"\r\n" + RECORDED.replace(b"hello", b"forged")


def saying(*parts: bytes, end: bool = False) -> Script:
    async def script(exchange: Exchange) -> None:
        for part in parts:
            await exchange.send(part)
        if end:
            await exchange.end()

    return script


@pytest.mark.parametrize(
    "parts",
    [
        (CHUNKED + CHUNK + b"0\r\n\r\n",),
        [bytes((byte,)) for byte in CHUNKED + CHUNK + b"0\r\n\r\n"],
        (CHUNKED, SIZE, b";name=value\r\n", RECORDED, b"\r\n0;last\r\n", b"Trailer: \xec\x95\x88\r\n\r\n"),
        (CHUNKED, SIZE + b"  \r\n", RECORDED, b"\r\n0\r\n\r\n"),
        (SIZED + b"\r\n" + RECORDED,),
        ((SIZED + b"\r\n").replace(b"\r\n", b"\n") + RECORDED,),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            SIZED,
            b"\r\n" + RECORDED,
        ),
        (b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n" % len(RECORDED), RECORDED),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED), PACKED),
    ],
    ids=["whole", "bytes", "extended", "spaced", "sized", "bare-lf", "informed", "nameless", "packed"],
)
async def test_an_answer_is_read_however_it_is_framed_and_its_connection_kept(parts: list[bytes]) -> None:
    async with ScriptedUpstream(saying(*parts)) as upstream:
        provider = OpenAI(upstream.url)
        for _ in range(2):
            assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    assert upstream.connections == 1


@pytest.mark.parametrize(
    ("said", "end"),
    [
        (SIZED + b"Connection: close\r\n\r\n" + RECORDED, False),
        (HEAD + b"\r\n" + RECORDED, True),
        (b"HTTP/1.0 200 OK\r\n\r\n" + RECORDED, True),
        (CHUNKED + CHUNK + b"0\r\n\r\n" + b"rubbish", False),
        (SIZED + b"\r\n" + RECORDED + FORGED, False),
    ],
    ids=["closing", "unsized", "old", "surplus", "forged"],
)
async def test_what_ends_with_its_answer_or_says_more_is_not_used_again(said: bytes, end: bool) -> None:
    async with ScriptedUpstream(saying(said, end=end)) as upstream:
        provider = OpenAI(upstream.url)
        for _ in range(2):
            assert (await provider.chat(call(), Progress())).text == TEXT
        await provider.aclose()
    assert upstream.connections == 2


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ((b"HTTP/1.1 200 OK\r\nX: ", *([b"x" * 65_536] * 3)), FailureKind.CONNECTION),
        ((b"HTTP/1.1 200 OK\r\n", *([b"X: y\r\n" * 10_000] * 3)), FailureKind.CONNECTION),
        ((b"SSH-2.0-OpenSSH\r\n",), FailureKind.CONNECTION),
        ((b"HTTP/1.1 2000 OK\r\n\r\n",), FailureKind.CONNECTION),
        ((HEAD + b"Content-Length: 10, 20\r\n\r\n",), FailureKind.CONNECTION),
        ((CHUNKED, b"zz\r\n"), FailureKind.INTERRUPTED),
        ((CHUNKED, b"5\r\n: ok\n\r\n", b"zz\r\n"), FailureKind.INTERRUPTED),
        ((CHUNKED, b"5;", *([b"x" * 65_536] * 3)), FailureKind.INTERRUPTED),
        ((HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\n", b"plain"), FailureKind.MALFORMED),
    ],
    ids=["endless-line", "endless-head", "no-http", "status", "lengths", "size", "size-amid", "extension", "unpacked"],
)
async def test_what_is_no_http_is_a_failure_at_once_and_is_hung_up_on(parts: list[bytes], kind: FailureKind) -> None:
    async def script(exchange: Exchange) -> None:
        await saying(*parts)(exchange)
        await exchange.client_gone()

    assert (await fail(script)).kind is kind
