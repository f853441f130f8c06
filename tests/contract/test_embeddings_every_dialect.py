"""Vectors from every dialect that has them: what it is sent, what it may answer, and what its failures are."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from struct import pack
from typing import Any, Final

import cohere
import ollama
import openai
import pytest
from google import genai
from google.genai.types import EmbedContentConfig, HttpOptions
from pydantic import SecretStr

from adapters.providers import Backend, Setup, build
from adapters.providers.reading import LINE_BYTES
from router.errors import AttemptError
from router.ports import Call, Embedder
from schemas.failure import FailureKind
from schemas.outcome import Answer
from schemas.policy import Dialect
from schemas.request import Chat
from schemas.vectors import unpacked
from tests.support.openai_speech import CANARY
from tests.support.scripted_upstream import Exchange, ScriptedUpstream

TEXTS: Final = ("서울 날씨를 알려 주세요 🙂", "A harbour in the fog")
VECTORS: Final = ((0.5, -0.25, 0.125), (-1.0, 0.0, 2.0))
Json = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """How a dialect's server takes texts and gives vectors."""

    path: str
    asked: Callable[[tuple[str, ...], int | None], Json]
    answer: Callable[[Any, Any], Json]
    """Of these vectors, and so many tokens in."""
    texts: Callable[[Json], int]
    """How many texts such a body has."""
    most: int
    """Texts that go into one call."""


def _openai(texts: tuple[str, ...], dimensions: int | None) -> Json:
    wish = {} if dimensions is None else {"dimensions": dimensions}
    return {"model": "m", "input": list(texts), "encoding_format": "base64", **wish}


def _ollama(texts: tuple[str, ...], dimensions: int | None) -> Json:
    wish = {} if dimensions is None else {"dimensions": dimensions}
    load = {"options": {"num_ctx": 2048}, "keep_alive": 7200}
    return {"model": "m", "input": list(texts), "truncate": False, **load, **wish}


def _gemini(texts: tuple[str, ...], dimensions: int | None) -> Json:
    wish = {} if dimensions is None else {"outputDimensionality": dimensions}
    return {
        "requests": [
            {"model": "models/m", "content": {"role": "user", "parts": [{"text": text}]}, **wish} for text in texts
        ]
    }


def _cohere(texts: tuple[str, ...], dimensions: int | None) -> Json:
    wish = {} if dimensions is None else {"output_dimension": dimensions}
    kind = {"input_type": "search_document", "embedding_types": ["float"], "truncate": "NONE"}
    return {"model": "m", "texts": list(texts), **kind, **wish}


def _base64(vector: Any) -> Any:
    numbers = isinstance(vector, tuple) and all(isinstance(number, float) for number in vector)
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode() if numbers else vector


SERVERS: Final[dict[Dialect, Server]] = {
    "openai": Server(
        "/embeddings",
        _openai,
        lambda vectors, tokens: {
            "object": "list",
            # In any order: each says which text it is of.
            "data": [
                {"object": "embedding", "index": at, "embedding": _base64(each)}
                for at, each in reversed(list(enumerate(vectors)))
            ],
            "model": "m",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        },
        lambda body: len(body["input"]),
        256,
    ),
    "ollama": Server(
        "/api/embed",
        _ollama,
        lambda vectors, tokens: {
            "model": "m", "embeddings": vectors, "total_duration": 9_000_000, "load_duration": 2_000_000,
            "prompt_eval_count": tokens,
        },
        lambda body: len(body["input"]),
        256,
    ),
    "gemini": Server(
        "/models/m:batchEmbedContents",
        _gemini,
        lambda vectors, tokens: {
            "embeddings": [{"values": each} for each in vectors], "usageMetadata": {"promptTokenCount": tokens},
        },
        lambda body: len(body["requests"]),
        100,
    ),
    "cohere": Server(
        "/v2/embed",
        _cohere,
        lambda vectors, tokens: {
            "id": "1", "embeddings": {"float": vectors}, "texts": [], "response_type": "embeddings_by_type",
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}},
        },
        lambda body: len(body["texts"]),
        96,
    ),
}  # fmt: skip


def call(texts: tuple[str, ...] = TEXTS, dimensions: int | None = None, first_ms: int = 5000) -> Call:
    return Call("m", Chat(messages=(), embed=texts, dimensions=dimensions), first_ms, 5000)


@dataclass
class Peer:
    server: Server
    provider: Any
    upstream: ScriptedUpstream

    async def ask(self, asked: Call | None = None) -> Answer:
        assert isinstance(self.provider, Embedder)
        return await self.provider.embed(asked or call())

    async def reads(self, body: bytes, asked: Call | None = None) -> Answer:
        self.upstream.script = lambda exchange: exchange.reply(200, body)
        return await self.ask(asked)

    async def answers(self, vectors: Any = VECTORS, tokens: Any = 7, asked: Call | None = None) -> Answer:
        return await self.reads(json.dumps(self.server.answer(vectors, tokens)).encode(), asked)

    async def fails(self, asking: Any) -> AttemptError:
        with pytest.raises(AttemptError) as caught:
            await asking
        return caught.value


@asynccontextmanager
async def peer_of(dialect: Dialect) -> AsyncIterator[Peer]:
    keys = (SecretStr(CANARY),) if dialect != "ollama" else ()
    async with ScriptedUpstream() as upstream:
        provider = build(dialect, Setup(upstream.url, {"m": Backend(num_ctx=2048, embeds=True)}, keys))
        yield Peer(SERVERS[dialect], provider, upstream)
        await provider.aclose()


@pytest.fixture(params=SERVERS)
async def peer(request: pytest.FixtureRequest) -> AsyncIterator[Peer]:
    async with peer_of(request.param) as peer:
        yield peer


@pytest.mark.parametrize("dimensions", [None, 3])
async def test_a_vector_comes_for_each_text_in_their_order_with_what_it_cost(
    peer: Peer, dimensions: int | None
) -> None:
    answer = await peer.answers(asked=call(dimensions=dimensions))
    assert [unpacked(vector) for vector in answer.embeddings or ()] == list(VECTORS)
    assert answer.usage is not None
    assert (answer.usage.tokens_in, answer.usage.tokens_out, answer.text) == (7, 0, "")
    exchange = peer.upstream.exchanges[0]
    assert (exchange.method, exchange.path) == ("POST", peer.server.path)
    assert exchange.json() == peer.server.asked(TEXTS, dimensions)


async def test_many_texts_go_in_calls_as_large_as_it_takes_and_come_back_as_one(peer: Peer) -> None:
    count = 2 * peer.server.most + 3
    texts = tuple(f"글 {n}" for n in range(count))
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        wanted = peer.server.texts(exchange.json())
        vectors = [(float(n), 1.0) for n in range(sent, sent + wanted)]
        sent += wanted
        await exchange.reply(200, json.dumps(peer.server.answer(vectors, wanted)).encode())

    peer.upstream.script = script
    answer = await peer.ask(call(texts))
    assert [unpacked(vector)[0] for vector in answer.embeddings or ()] == list(range(count))
    assert answer.usage is not None
    assert answer.usage.tokens_in == count
    assert len(peer.upstream.exchanges) == 3
    assert peer.upstream.connections == 1


async def test_what_fails_after_a_part_was_paid_for_is_an_answer_broken_off(peer: Peer) -> None:
    async def script(exchange: Exchange) -> None:
        if len(peer.upstream.exchanges) > 1:
            await exchange.reply(429, b'{"error": {"message": "slow down"}}')
        else:
            vectors = [(1.0, 1.0)] * peer.server.most
            await exchange.reply(200, json.dumps(peer.server.answer(vectors, 5)).encode())

    peer.upstream.script = script
    error = await peer.fails(peer.ask(call(("글",) * (peer.server.most + 1))))
    assert error.failure.kind is FailureKind.INTERRUPTED
    assert f"after {peer.server.most} of {peer.server.most + 1} texts" in error.failure.message
    assert "slow down" in error.failure.message


async def test_a_server_that_gives_numbers_where_it_was_asked_for_base64_is_read_too() -> None:
    async with peer_of("openai") as peer:
        answer = await peer.answers([list(vector) for vector in VECTORS])
        assert [unpacked(vector) for vector in answer.embeddings or ()] == list(VECTORS)


async def test_ollama_says_how_long_it_took_to_load() -> None:
    async with peer_of("ollama") as peer:
        assert (await peer.answers()).load_ms == 2.0


@pytest.mark.parametrize(
    "vectors",
    [(), VECTORS[:1], (*VECTORS, VECTORS[0]), (VECTORS[0], (1.0,)), ((), ()), ("가", "나"), (("x",), ("y",)), None, 5],
)
async def test_what_is_not_a_vector_for_each_text_is_malformed(peer: Peer, vectors: Any) -> None:
    try:
        body = json.dumps(peer.server.answer(vectors, 7)).encode()
    except TypeError:  # no list at all, where each vector stands in an object of its own
        body = b'{"data": 5, "embeddings": 5}'
    error = await peer.fails(peer.reads(body))
    assert error.failure.kind is FailureKind.MALFORMED
    assert len(error.failure.upstream or "") <= 4096


@pytest.mark.parametrize("number", ["1e300", "1e999", "NaN", '"x"', "null"])
async def test_a_number_that_is_none_is_malformed(peer: Peer, number: str) -> None:
    body = json.dumps(peer.server.answer([[1.5, 77.0], [1.5, 2.0]], 7)).encode().replace(b"77.0", number.encode())
    assert (await peer.fails(peer.reads(body))).failure.kind is FailureKind.MALFORMED


@pytest.mark.parametrize("body", [b"[]", b"5", b"null", b"<!doctype html><title>Sign in</title>", b'{"error": "no"}'])
async def test_what_is_not_of_the_dialect_is_malformed(peer: Peer, body: bytes) -> None:
    assert (await peer.fails(peer.reads(body))).failure.kind is FailureKind.MALFORMED


async def test_vectors_of_another_length_than_asked_for_are_a_bad_request_that_says_so(peer: Peer) -> None:
    error = await peer.fails(peer.answers(asked=call(dimensions=2)))
    assert error.failure.kind is FailureKind.BAD_REQUEST
    assert "have 3 numbers and cannot have 2" in error.failure.message


async def test_cut_off_at_every_byte_it_is_never_whole(peer: Peer) -> None:
    body = json.dumps(peer.server.answer(VECTORS, 7), indent=1).encode()
    for cut in range(0, len(body) - 1, 3):
        peer.upstream.script = lambda exchange, cut=cut: _cut_off(exchange, body[:cut])
        error = await peer.fails(peer.ask())
        assert error.failure.kind is FailureKind.INTERRUPTED, cut


async def _cut_off(exchange: Exchange, sent: bytes) -> None:
    await exchange.head()
    await exchange.send(sent)
    await exchange.end()


@pytest.mark.parametrize("tokens", [-1, "26", None, 2.5, [], 10**15])
async def test_a_count_that_cannot_be_true_spoils_no_answer(peer: Peer, tokens: Any) -> None:
    answer = await peer.answers(tokens=tokens)
    assert answer.embeddings is not None
    assert answer.usage is None


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "no"}}, FailureKind.BAD_REQUEST),
        (400, {"error": "the input length exceeds the context length"}, FailureKind.CONTEXT_TOO_LONG),
        (404, {"error": "model 'm' not found"}, FailureKind.BAD_REQUEST),
        (429, {"error": {"message": "slow down"}}, FailureKind.RATE_LIMITED),
        (500, {"error": "model runner has unexpectedly stopped"}, FailureKind.SERVER_ERROR),
        (
            500,
            {"error": "model requires more system memory (1 GiB) than is available"},
            FailureKind.INSUFFICIENT_MEMORY,
        ),
    ],
)
async def test_a_refusal_is_classified_as_any_other(peer: Peer, status: int, body: Json, kind: FailureKind) -> None:
    peer.upstream.script = lambda exchange: exchange.reply(status, json.dumps(body).encode())
    error = await peer.fails(peer.ask())
    assert (error.failure.kind, error.failure.status) == (kind, status)


@pytest.mark.parametrize("dialect", ["openai", "gemini", "cohere"])
async def test_a_key_that_is_refused_is_named_and_never_told(dialect: Dialect) -> None:
    async with peer_of(dialect) as peer:
        peer.upstream.script = lambda exchange: exchange.reply(401, json.dumps({"error": f"bad {CANARY}"}).encode())
        error = await peer.fails(peer.ask())
        assert error.failure.kind is FailureKind.AUTH
        assert CANARY not in str(error) + str(error.failure)
        assert CANARY in "".join(peer.upstream.exchanges[0].headers.values())
        assert CANARY not in peer.upstream.exchanges[0].path


async def test_silence_is_bounded_and_hangs_up(peer: Peer) -> None:
    peer.upstream.script = lambda exchange: exchange.client_gone()
    error = await asyncio.wait_for(peer.fails(peer.ask(call(first_ms=100))), 10)
    assert error.failure.kind is FailureKind.SILENCE
    await asyncio.wait_for(peer.upstream.all_gone(), 5)


async def test_cancelling_closes_the_connection(peer: Peer) -> None:
    peer.upstream.script = lambda exchange: exchange.client_gone()
    task = asyncio.ensure_future(peer.ask())
    await peer.upstream.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(peer.upstream.exchanges[0].gone.wait(), 1)


async def test_nobody_there(peer: Peer) -> None:
    await peer.upstream.close()
    assert (await peer.fails(peer.ask())).failure.kind is FailureKind.CONNECTION


async def test_what_does_not_end_is_hung_up_on(peer: Peer) -> None:
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.head()
        while True:
            await exchange.send(b"[" + b" " * 100_000)
            sent += 100_000

    peer.upstream.script = script
    assert (await peer.fails(peer.ask())).failure.kind is FailureKind.MALFORMED
    await asyncio.wait_for(peer.upstream.all_gone(), 5)
    assert sent < 3 * LINE_BYTES


async def test_the_makers_own_clients_ask_the_same_and_read_the_same() -> None:
    """Each vendor's client against the same script: what it sends is what we send, what we read it can read."""
    for dialect, ask in CLIENTS.items():
        async with peer_of(dialect) as peer:
            ours = [
                list(unpacked(vector)) for vector in (await peer.answers(asked=call(dimensions=3))).embeddings or ()
            ]
            theirs = await asyncio.to_thread(ask, peer.upstream.url)
            assert theirs == ours, dialect
            sent, read = (exchange.json() for exchange in peer.upstream.exchanges)
            assert [exchange.path for exchange in peer.upstream.exchanges] == [peer.server.path] * 2
            assert read == {name: value for name, value in sent.items() if name in read}, dialect


def _by_openai(url: str) -> Any:
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        made = client.embeddings.create(model="m", input=list(TEXTS), dimensions=3)
    return [each.embedding for each in sorted(made.data, key=lambda each: each.index)]


def _by_ollama(url: str) -> Any:
    with ollama.Client(host=url, trust_env=False) as client:
        made = client.embed("m", list(TEXTS), dimensions=3, truncate=False)
    return [list(vector) for vector in made.embeddings]


def _by_cohere(url: str) -> Any:
    with cohere.ClientV2(api_key="x", base_url=url) as client:
        made = client.embed(
            model="m", texts=list(TEXTS), input_type="search_document", embedding_types=["float"], output_dimension=3,
            truncate="NONE",
        )  # fmt: skip
    return made.embeddings.float_


def _by_gemini(url: str) -> Any:
    wish = EmbedContentConfig(output_dimensionality=3)
    with genai.Client(api_key="x", http_options=HttpOptions(base_url=url, api_version="")) as client:
        made = client.models.embed_content(model="m", contents=list(TEXTS), config=wish)
    return [each.values for each in made.embeddings or ()]


CLIENTS: Final[dict[Dialect, Callable[[str], Any]]] = {
    "openai": _by_openai, "ollama": _by_ollama, "cohere": _by_cohere, "gemini": _by_gemini,
}  # fmt: skip


async def test_anthropic_has_none() -> None:
    provider = build("anthropic", Setup("http://127.0.0.1:9"))
    assert not isinstance(provider, Embedder)
    await provider.aclose()
