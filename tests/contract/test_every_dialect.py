"""What no dialect may get wrong, whatever its server does to the bytes, over real TCP."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from adapters.providers import Backend, Setup, build
from adapters.providers.failures import MAX_TOKENS
from adapters.providers.reading import LINE_BYTES
from router.errors import AttemptError
from router.ports import Call, Progress, Provider
from schemas.failure import Failure, FailureKind
from schemas.outcome import Answer
from schemas.request import Chat
from tests.support.scripted_upstream import Ending, Exchange, ScriptedUpstream
from tests.support.speeches import SPEECHES, Speech

ASKED: Final = "서울 날씨를 알려 주세요 🙂"
NONSENSE: Final = (
    b"{nonsense}", b"[]", b"5", b'{"a": 1', b'"\xff\xfe"', b'{"a": "\\ud800"}', b"[" * 9999, b"null", b"x" * 100_000,
)  # fmt: skip
AT_ONCE: Final = 32
SAMPLE: Final = 7


def call(asked: str = ASKED, *, first_ms: int = 5000, idle_ms: int = 5000) -> Call:
    return Call("m", Chat.model_validate({"messages": [{"role": "user", "content": asked}]}), first_ms, idle_ms)


@dataclass
class Peer:
    """A provider and the server it calls."""

    speech: Speech
    provider: Provider
    upstream: ScriptedUpstream

    async def ask(self, asked: Call | None = None) -> Answer | Failure:
        try:
            return await self.provider.chat(asked or call(), Progress())
        except AttemptError as error:
            return error.failure

    async def reads(self, body: bytes, piece: int = 1 << 16) -> Answer | Failure:
        self.upstream.script = lambda exchange: exchange.stream(body, piece=piece)
        return await self.ask()

    async def answers(self, body: bytes, piece: int = 1 << 16) -> Answer:
        answer = await self.reads(body, piece)
        assert isinstance(answer, Answer), answer
        return answer


@pytest.fixture(params=SPEECHES)
async def peer(request: pytest.FixtureRequest) -> AsyncIterator[Peer]:
    async with ScriptedUpstream() as upstream:
        provider = build(request.param, Setup(upstream.url, {"m": Backend()}))
        yield Peer(SPEECHES[request.param], provider, upstream)
        await provider.aclose()


def kind(outcome: Answer | Failure) -> FailureKind:
    assert isinstance(outcome, Failure), outcome
    return outcome.kind


async def until_gone(exchange: Exchange, sent: bytes | None) -> None:
    """Send what there is, then nothing, until the client hangs up."""
    if sent is not None:
        await exchange.head()
        await exchange.send(sent)
    await exchange.client_gone()


def forms(speech: Speech) -> Iterator[bytes]:
    """The same stream in all the ways its form allows."""
    recorded = speech.recorded
    yield recorded
    yield recorded.replace(b"\n", b"\r\n")
    if not speech.sse:
        yield recorded.replace(b"\n", b"\n\n")
        return
    bare = b"".join(line for line in recorded.splitlines(keepends=True) if not line.startswith(b"event:"))
    yield b"\xef\xbb\xbf: hello\n\n" + recorded.replace(b"\n\n", b"\n\n: still here\n\n")
    yield bare.replace(b"\n\n", b"\n")
    yield bare.replace(b"data: ", b"event: message\nid: 1\ndata:")
    yield re.sub(rb',( ?)"', rb',\ndata:\1"', recorded)  # one event in several lines of data


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 64, 10_000])
async def test_any_form_and_cut_of_the_stream_gives_the_same_answer(peer: Peer, piece: int) -> None:
    whole = await peer.answers(peer.speech.recorded)
    assert whole.text == peer.speech.text
    assert whole.usage is not None
    assert whole.usage.tokens_in > 0
    for body in forms(peer.speech):
        assert await peer.answers(body, piece) == whole, body


async def test_tool_calls_in_any_cut_are_the_same(peer: Peer) -> None:
    whole = await peer.answers(peer.speech.tools)
    assert [found["function"]["name"] for found in whole.tool_calls][:2] == ["weather", "clock"]
    assert whole.finish_reason == "tool_calls"
    assert await peer.answers(peer.speech.tools, 1) == whole


@pytest.mark.parametrize(("how", "chunked", "every"), [("fin", False, 1), ("fin", True, SAMPLE), ("rst", True, SAMPLE)])
@pytest.mark.parametrize("which", ["recorded", "tools"])
async def test_truncated_at_every_byte_it_is_never_whole(
    peer: Peer, which: str, how: Ending, every: int, *, chunked: bool
) -> None:
    stream: bytes = getattr(peer.speech, which)
    whole_from = len(stream.rstrip())
    marked_at = whole_from + stream.endswith(b"\r\n")  # by then the line has ended for sure
    if peer.speech.enough and not chunked:  # then a clean end is all that the transport can tell
        whole_from = stream.index(b"\n", stream.index(peer.speech.enough))
    whole = _without_usage(await peer.answers(stream))

    async def script(exchange: Exchange) -> None:
        found = re.search(rb"cut=(\d+)", exchange.body)
        assert found is not None
        cut = int(found[1])
        await exchange.head(200, {"Transfer-Encoding": "chunked"} if chunked else {})
        await (exchange.chunk if chunked and cut else exchange.send)(stream[:cut])
        await exchange.end(how)

    async def check(cut: int) -> None:
        async with places:
            outcome = await peer.ask(call(f"서울 cut={cut}"))
        if isinstance(outcome, Answer):
            assert cut >= whole_from, (cut, outcome)
            assert _without_usage(outcome) == whole, cut
        else:
            # A reset may overtake even the status line; then nothing had begun.
            allowed = {FailureKind.INTERRUPTED} | ({FailureKind.CONNECTION} if how == "rst" else set())
            assert outcome.kind in allowed, (cut, outcome)
            assert cut <= marked_at or how == "rst", (cut, outcome)

    peer.upstream.script = script
    places = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for cut in range(0, len(stream) + 1, every):
            group.create_task(check(cut))


def _without_usage(answer: Answer) -> Answer:
    return answer.model_copy(update={"usage": None})


async def test_without_an_end_mark_it_is_interrupted(peer: Peer) -> None:
    assert kind(await peer.reads(peer.speech.began)) is FailureKind.INTERRUPTED


async def test_what_is_not_of_the_dialect_is_malformed_first_or_amid(peer: Peer) -> None:
    began = peer.speech.began
    rest = peer.speech.recorded.removeprefix(began)
    for nonsense in NONSENSE:
        for before in (b"", began):
            outcome = await peer.reads(before + peer.speech.event(nonsense) + rest)
            assert kind(outcome) is FailureKind.MALFORMED, (before, nonsense)
            assert isinstance(outcome, Failure)
            assert len(outcome.upstream or "") <= 4096
    assert kind(await peer.reads(b"<!doctype html><title>Sign in</title>\n")) is FailureKind.MALFORMED


async def test_a_line_of_five_megabytes_that_says_nothing_is_passed_over(peer: Peer) -> None:
    padding = b"x" * (5 << 20)
    aside = b":%s\n\n" % padding if peer.speech.sse else b'{"aside": "%s"}\n' % padding
    assert (await peer.answers(aside + peer.speech.recorded)).text == peer.speech.text


async def test_a_text_of_four_megabytes_in_one_event_is_taken_and_one_of_five_is_refused(peer: Peer) -> None:
    began = peer.speech.began
    rest = peer.speech.recorded.removeprefix(began)
    taken = "가🙂" * 590_000  # 4.1 MB
    assert (await peer.answers(began + peer.speech.said(taken) + rest)).text == peer.speech.text + taken
    assert kind(await peer.reads(began + peer.speech.said("가" * 1_750_000) + rest)) is FailureKind.MALFORMED


@pytest.mark.parametrize("endless", ["line", "answer"])
async def test_what_does_not_end_is_hung_up_on_before_it_fills_the_memory(peer: Peer, endless: str) -> None:
    piece = b"x" * 100_000 if endless == "line" else peer.speech.said("가" * 30_000)
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.head()
        await exchange.send(peer.speech.began)
        while True:
            await exchange.send(piece)
            sent += len(piece)

    peer.upstream.script = script
    assert kind(await peer.ask()) is FailureKind.MALFORMED
    await asyncio.wait_for(peer.upstream.all_gone(), 5)
    assert sent < 3 * LINE_BYTES  # what it takes, and what sockets hold


async def test_counts_that_cannot_be_true_spoil_no_answer_and_no_bill(peer: Peer) -> None:
    lies: tuple[Any, ...] = (-1, 10**15, "26", None, 2.5, [], {}, True)
    for lie in lies:
        for counts in ((lie, 2), (26, lie), (lie, lie)):
            answer = await peer.answers(peer.speech.counted(*counts))
            assert answer.text == peer.speech.text
            assert answer.usage is None or answer.usage.tokens_in + answer.usage.tokens_out <= 28, counts
            assert answer.usage is None or min(answer.usage.tokens_in, answer.usage.tokens_out) >= 0, counts
    told = (await peer.answers(peer.speech.counted(26, MAX_TOKENS))).usage
    assert told is not None
    assert (told.tokens_in, told.tokens_out) == (26, MAX_TOKENS)


@pytest.mark.parametrize("sent", ["no head", "head only", "comment only", "midway", "midway and comments"])
async def test_silence_is_told_from_a_stall_and_hangs_up(peer: Peer, sent: str) -> None:
    ping = b": ping\n\n" if peer.speech.sse else b"\n"
    began = sent.startswith("midway")

    async def pinging(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(peer.speech.began)
        while True:
            await exchange.send(ping)
            await asyncio.sleep(0.01)  # the pace of its pings

    async def script(exchange: Exchange) -> None:
        body = {"no head": None, "head only": b"", "comment only": ping, "midway": peer.speech.began}
        await (until_gone(exchange, body[sent]) if sent in body else exchange.while_connected(pinging(exchange)))

    peer.upstream.script = script
    # Waiting for the first piece as long as that would end the test and not the call.
    outcome = await asyncio.wait_for(peer.ask(call(first_ms=60_000 if began else 100, idle_ms=100)), 10)
    assert kind(outcome) is (FailureKind.INTERRUPTED if began else FailureKind.SILENCE)
    await asyncio.wait_for(peer.upstream.all_gone(), 5)


@pytest.mark.parametrize("begun", [False, True])
async def test_cancelling_closes_the_connection(peer: Peer, *, begun: bool) -> None:
    first = asyncio.Event()
    peer.upstream.script = lambda exchange: until_gone(exchange, peer.speech.began if begun else None)
    task = asyncio.ensure_future(peer.provider.chat(call(), Progress(lambda _piece: first.set())))
    await (first if begun else peer.upstream.arrived).wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(peer.upstream.exchanges[0].gone.wait(), 1)


async def test_fifty_faults_leave_no_connection_behind(peer: Peer) -> None:
    faults = ("reset", "cut", "garbled", "stalled", "cancelled")
    garbled = peer.speech.began + peer.speech.event(b"{nonsense}")

    async def script(exchange: Exchange) -> None:
        fault = next(fault for fault in faults if fault.encode() in exchange.body)
        if fault == "reset":
            await exchange.end("rst")
        elif fault == "cut":
            await exchange.head()
            await exchange.send(peer.speech.began)
            await exchange.end()
        else:
            await until_gone(exchange, garbled if fault == "garbled" else peer.speech.began)

    async def suffer(fault: str) -> None:
        first = asyncio.Event()
        asked = call(fault, idle_ms=100 if fault == "stalled" else 5000)
        task = asyncio.ensure_future(peer.provider.chat(asked, Progress(lambda _piece: first.set())))
        if fault == "cancelled":
            await first.wait()
            task.cancel()
        with pytest.raises((AttemptError, asyncio.CancelledError)):
            await task

    peer.upstream.script = script
    await asyncio.gather(*(suffer(fault) for fault in faults * 10))
    assert len(peer.upstream.exchanges) == 50
    await asyncio.wait_for(peer.upstream.all_gone(), 5)
    for _ in range(3):
        await peer.answers(peer.speech.recorded)
    assert peer.upstream.connections == 51


async def test_whole_answers_and_refusals_leave_the_connection_usable(peer: Peer) -> None:
    for _ in range(3):
        await peer.answers(peer.speech.recorded)
    peer.upstream.script = lambda exchange: exchange.reply(500, b"{}")
    assert kind(await peer.ask()) is FailureKind.SERVER_ERROR
    await peer.answers(peer.speech.recorded)
    assert peer.upstream.connections == 1


async def test_a_server_that_stays_on_the_line_after_the_end_mark_does_not_hold_the_answer(peer: Peer) -> None:
    peer.upstream.script = lambda exchange: until_gone(exchange, peer.speech.recorded)
    answer = await asyncio.wait_for(peer.ask(call(first_ms=60_000, idle_ms=60_000)), 5)
    assert isinstance(answer, Answer)
    assert answer.text == peer.speech.text


async def test_nobody_there(peer: Peer) -> None:
    await peer.upstream.__aexit__()
    assert kind(await peer.ask()) is FailureKind.CONNECTION
    with pytest.raises(AttemptError):
        await peer.provider.probe()
