"""What upstreams do wrong, as scripts; and what a request comes to: its reply, its pieces, what is left of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, groupby, repeat
from typing import Any

from adapters.client import RequestFailedError
from router.core.tokens import BYTES_PER_TOKEN, estimate_tokens
from schemas import Chunk, Heartbeat, LlmRequest, ModelState, Reply
from schemas.work import AttemptRecord, Usage
from subjects.streams import NODES_BUCKET, OUTCOMES, WORK
from tests.support.openai_speech import DONE, FINISH, USAGE, event, refusing
from tests.support.scripted_upstream import SSE, Ending, Exchange, Script
from tests.support.upstreams import NAMES, Upstreams, answering

PROMPT = "서울의 내일 날씨를 두 문장으로 알려 주세요."
TOKENS = tuple(f"조각{n} " for n in range(60))
CHUNKED = {**SSE, "Transfer-Encoding": "chunked", "Connection": "close"}
COUNTED = Usage(tokens_in=20, tokens_out=10, cached_tokens_in=8, reasoning_tokens_out=4)
"""What every good answer here says it has used."""

OOPS = refusing(500, {"error": {"message": "oops"}})
AWAY = refusing(503, {"error": {"message": "잠시 후 다시"}})
TOO_MANY = refusing(429, {"error": {"message": "slow down"}})
SILENT: Script = Exchange.client_gone


async def reset(exchange: Exchange) -> None:
    await exchange.end("rst")


def once(fault: Script, then: Script | None = None) -> Script:
    """The first request meets the fault, the others a good answer."""
    scripts = chain([fault], repeat(then or answering("primary")))
    return lambda exchange: next(scripts)(exchange)


async def begin(exchange: Exchange, tokens: int) -> None:
    """An answer as far as its first tokens."""
    await exchange.head(200, CHUNKED)
    for token in TOKENS[:tokens]:
        await exchange.chunk(event({"content": token}))


def cut(how: Ending) -> Script:
    async def script(exchange: Exchange) -> None:
        await begin(exchange, 40)
        for _ in range(100):  # a reset takes with it what was not read yet
            await asyncio.sleep(0)
        await exchange.end(how)

    return script


async def stalling(exchange: Exchange) -> None:
    await begin(exchange, 40)
    await exchange.client_gone()


async def late(exchange: Exchange) -> None:
    """Signs of life and no word of an answer, until nobody waits any more."""

    async def work() -> None:
        await exchange.head(200, CHUNKED)
        while True:
            await exchange.chunk(b": OPENROUTER PROCESSING\n\n")
            await asyncio.sleep(0.05)

    await exchange.while_connected(work())


async def malformed(exchange: Exchange) -> None:
    await begin(exchange, 9)
    await exchange.chunk(b'data: {"choices": [{"delta": {"content": ten}}]}\n\n')
    for token in TOKENS[10:]:
        await exchange.chunk(event({"content": token}))
    await exchange.chunk(FINISH + event(usage=USAGE) + DONE)
    await exchange.chunk(b"")


async def unterminated(exchange: Exchange) -> None:
    await begin(exchange, 60)
    await exchange.chunk(b"")


@dataclass(frozen=True, slots=True)
class Held:
    """A script that begins its answer and goes on when it is told to."""

    go: asyncio.Event
    tokens: int = 5

    def __call__(self, exchange: Exchange) -> Any:
        async def work() -> None:
            await begin(exchange, self.tokens)
            await self.go.wait()
            await exchange.chunk(FINISH + event(usage=USAGE) + DONE)
            await exchange.chunk(b"")

        return exchange.while_connected(work())


def both_ways(test: Callable[[bool], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """A test of a stream and of a whole answer, at once, each on a bus of its own."""

    async def twice() -> None:
        await asyncio.gather(test(False), test(True))

    return twice


def usd(model: str, usage: Usage) -> Decimal:
    """By the prices in `tests.support.upstreams`."""
    return Decimal((NAMES.index(model) + 1) * (usage.tokens_in + 2 * usage.tokens_out)) / 1_000_000


def heard(tokens: int) -> Usage:
    """What an attempt has used that broke off after so many tokens."""
    size = len("".join(TOKENS[:tokens]).encode())
    return Usage(tokens_in=estimate_tokens([PROMPT]), tokens_out=-(-size // BYTES_PER_TOKEN), estimated=True)


def tried(attempts: Iterable[AttemptRecord]) -> list[str]:
    """Model and failure of each attempt: `primary server_error`; an answer has its model only."""
    return [f"{a.model} {a.failure.kind.value}" if a.failure else a.model for a in attempts]


async def ask(up: Upstreams, rid: str = "r1", *, stream: bool = False, **fields: Any) -> Reply:
    """The terminal reply, whatever it is; its pieces, its attempts and its bill have been found to agree with it."""
    pieces: list[Chunk] = []
    whole = asyncio.Event()

    def note(subject: str, data: bytes, _headers: object) -> None:
        whole.set() if subject.endswith(".mark") else pieces.append(Chunk.decode(data))

    async with up.bus.bus.listen(f"llm.chunk.tester.{rid}.*", note):
        try:
            reply = await up.bus.client.ask(LlmRequest(prompt=PROMPT, stream=stream, **fields), request_id=rid)
        except RequestFailedError as error:
            if error.reply is None:
                raise
            reply = error.reply
        await up.bus.bus.tell(f"llm.chunk.tester.{rid}.mark", b"")  # it comes behind all that was sent
        async with asyncio.timeout(5):
            await whole.wait()
    if stream:
        assert_pieces_are_whole(pieces, reply)
    else:
        assert pieces == []
    assert_bill_is_right(reply)
    return reply


def assert_pieces_are_whole(pieces: list[Chunk], reply: Reply) -> None:
    """Attempt after attempt, each numbered without a gap, each but the first announced, the last as in the reply."""
    attempts = {key: list(group) for key, group in groupby(pieces, lambda piece: piece.attempt_id)}
    assert len(pieces) == sum(map(len, attempts.values())), "attempts do not mix"
    assert list(attempts) == sorted(attempts)
    for name, group in attempts.items():
        assert [piece.n for piece in group] == list(range(len(group)))
        assert name == "1.1" or (group[0].text, group[0].reasoning, group[0].tool_call) == ("", None, None)
    called = {attempt.attempt_id for attempt in reply.attempts if attempt.total_ms}
    assert called - {"1.1"} <= attempts.keys(), "every other call is announced"
    if reply.message is not None:
        answered = reply.attempts[-1].attempt_id
        assert list(attempts)[-1] == answered
        assert "".join(piece.text for piece in attempts[answered]) == reply.message.content


def assert_bill_is_right(reply: Reply) -> None:
    """The answer's cost is its own; what failed is told apart and adds up."""
    failed = list(reply.attempts)
    if reply.status == "ok":
        last = failed.pop()
        assert reply.usage is not None
        assert reply.cost_usd == last.cost_usd == usd(last.model, reply.usage)
    else:
        assert reply.cost_usd is None
    for attempt in failed:
        assert attempt.cost_usd == (usd(attempt.model, attempt.usage) if attempt.usage else 0)
    assert reply.wasted_usd == (sum(a.cost_usd for a in failed if a.cost_usd is not None) or None)


async def nothing_left(up: Upstreams) -> None:
    """Wait until nothing is to be done any more."""
    async with asyncio.timeout(5):
        for stream in (WORK, OUTCOMES):
            while [letter async for letter in up.bus.bus.read(stream)]:
                await asyncio.sleep(0.01)


async def told_of(up: Upstreams, model: str, holds: Callable[[ModelState], bool]) -> ModelState:
    """What the node's heartbeat says of `model`, once that holds."""
    async with asyncio.timeout(5):
        while True:
            letter = await up.bus.bus.last(f"KV_{NODES_BUCKET}", f"$KV.{NODES_BUCKET}.bench")
            if letter is not None and holds(state := Heartbeat.decode(letter.data).models[model]):
                return state
            await asyncio.sleep(0.01)
