"""Models that embed, on Ollama: its stand-in is held to what Ollama's source says, and they come into memory."""

import math
from collections import deque

import ollama
import pytest

from adapters.providers import Backend, Setup, build, residency
from router.errors import AttemptError
from router.ports import Call, Embedder
from schemas.failure import FailureKind
from schemas.request import Chat
from schemas.vectors import unpacked
from tests.support.fake_ollama import FakeModel, FakeOllama

NAME = "qwen3-embedding:0.6b"
TEXTS = ["항구에 안개가 낀다", "항구에 비가 온다", "fog"]
MODELS = {NAME: FakeModel(gb=1, dimensions=64), "chat": FakeModel(gb=1)}


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_its_own_client_reads_vectors_of_length_one_and_their_counts() -> None:
    async with FakeOllama(MODELS) as fake:
        client = ollama.AsyncClient(host=fake.url, trust_env=False)
        made = await client.embed(NAME, TEXTS)
        short = await client.embed(NAME, TEXTS[0], dimensions=16)
        longer = await client.embed(NAME, TEXTS[0], dimensions=1024)
        nothing = await client.embed(NAME, "")
        await client._client.aclose()
    assert [len(vector) for vector in made.embeddings] == [64] * 3
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-6) for vector in made.embeddings)
    first, second, third = ([*vector] for vector in made.embeddings)
    assert _cosine(first, second) > _cosine(first, third)
    assert (made.prompt_eval_count or 0) > 0
    assert (made.total_duration or 0) >= (made.load_duration or 0) > 0
    assert ([len(vector) for vector in short.embeddings], [len(v) for v in longer.embeddings]) == ([16], [64])
    assert (list(nothing.embeddings), nothing.prompt_eval_count) == ([], None)


async def test_what_it_refuses() -> None:
    async with FakeOllama(MODELS) as fake:
        client = ollama.AsyncClient(host=fake.url, trust_env=False)
        for asking, words in (
            (client.chat(NAME, [{"role": "user", "content": "안녕"}]), "does not support chat"),
            (client.generate(NAME, "안녕"), "does not support generate"),
            (client.generate(NAME, ""), "does not support generate"),
            (client.embed(NAME, "가" * 100, truncate=False, options={"num_ctx": 8}), "exceeds the context length"),
            (client.embed("nobody", "가"), "not found"),
        ):
            with pytest.raises(ollama.ResponseError, match=words):
                await asking
        cut = await client.embed(NAME, "가" * 100, options={"num_ctx": 8})
        await client._client.aclose()
    assert cut.prompt_eval_count == 8


async def test_it_comes_into_memory_is_used_there_and_goes() -> None:
    """By the same load options every time, or Ollama would load it anew."""
    async with FakeOllama(MODELS) as fake:
        setup = Setup(fake.url, {NAME: Backend(num_ctx=2048, resident=True, embeds=True)})
        provider = build("ollama", setup)
        held = residency("ollama", setup, provider)
        assert held is not None
        assert isinstance(provider, Embedder)
        await held.load(NAME)
        assert (await held.models())[NAME].context_tokens == 2048
        answer = await provider.embed(Call(NAME, Chat(messages=(), embed=tuple(TEXTS)), 5_000, 5_000))
        await held.generates(NAME, 5_000)
        assert fake.loads == [NAME]
        assert [body["input"] for body in fake.embeds] == [TEXTS, ["1"]]
        await held.unload(NAME)
        assert fake.in_memory == set()
        await held.aclose()
        await provider.aclose()
    assert [len(unpacked(vector)) for vector in answer.embeddings or ()] == [64] * 3
    assert answer.usage is not None
    assert answer.load_ms is not None


@pytest.mark.parametrize(
    ("fault", "kind"), [("error_first", FailureKind.SERVER_ERROR), ("cut", FailureKind.INTERRUPTED)]
)
async def test_what_fails_in_it_is_classified(fault: str, kind: FailureKind) -> None:
    async with FakeOllama(MODELS, faults=deque([fault])) as fake:  # type: ignore[list-item]
        provider = build("ollama", Setup(fake.url, {NAME: Backend(num_ctx=2048, embeds=True)}))
        assert isinstance(provider, Embedder)
        asked = Call(NAME, Chat(messages=(), embed=tuple(TEXTS)), 5_000, 5_000)
        with pytest.raises(AttemptError) as caught:
            await provider.embed(asked)
        assert caught.value.failure.kind is kind
        assert (await provider.embed(asked)).embeddings is not None
        with pytest.raises(AttemptError) as caught:
            await provider.embed(Call("nobody", asked.chat, 5_000, 5_000))
        assert "run `ollama pull nobody` there" in caught.value.failure.message
        await provider.aclose()
