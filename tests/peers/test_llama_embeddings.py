"""Vectors of a real engine: llama-server with `--embeddings`, by its OpenAI-compatible endpoint."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters.providers import Backend, Setup, build, residency
from router.errors import AttemptError
from router.ports import Call, Embedder
from schemas.failure import FailureKind
from schemas.outcome import Answer
from schemas.request import Chat
from schemas.vectors import unpacked
from tests.support import tiny_gguf
from tests.support.llama_server import MODEL, LlamaServer, llama_router, llama_server

pytestmark = pytest.mark.engine

EMBEDS = ("--embeddings", "--pooling", "mean", "-ub", "512")
TEXTS = ("항구에 안개가 낀다", "A harbour in the fog", "항구에 안개가 낀다")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    tiny_gguf.write(models / f"{MODEL}.gguf")
    return models


@asynccontextmanager
async def embedder(server: LlamaServer) -> AsyncIterator[Embedder]:
    provider = build("openai", Setup(server.url + "/v1", {MODEL: Backend(embeds=True)}))
    assert isinstance(provider, Embedder)
    try:
        yield provider
    finally:
        await provider.aclose()


async def ask(provider: Embedder, *texts: str, dimensions: int | None = None) -> Answer:
    return await provider.embed(Call(MODEL, Chat(messages=(), embed=texts, dimensions=dimensions), 20_000, 10_000))


async def fails(provider: Embedder, *texts: str, dimensions: int | None = None) -> FailureKind:
    with pytest.raises(AttemptError) as caught:
        await ask(provider, *texts, dimensions=dimensions)
    return caught.value.failure.kind


async def test_it_gives_each_text_its_vector_and_counts_its_tokens(directory: Path) -> None:
    async with llama_server(directory / f"{MODEL}.gguf", *EMBEDS) as server, embedder(server) as provider:
        await server.health(200)
        answer = await ask(provider, *TEXTS)
        first, second, again = (unpacked(vector) for vector in answer.embeddings or ())
        assert first == pytest.approx(again, abs=1e-5)
        assert math.dist(first, second) > 1e-3
        assert math.hypot(*first) == pytest.approx(1, abs=1e-4)
        assert answer.usage is not None
        assert answer.usage.tokens_in > 3
        assert (answer.usage.tokens_out, answer.usage.estimated) == (0, False)
        many = await ask(provider, *(f"글 {n}" for n in range(300)))
        assert len(many.embeddings or ()) == 300


async def test_what_it_cannot_do_is_classified(directory: Path) -> None:
    async with llama_server(directory / f"{MODEL}.gguf", *EMBEDS, context=512) as server, embedder(server) as provider:
        await server.health(200)
        assert await fails(provider, "가" * 9000) is FailureKind.CONTEXT_TOO_LONG
        assert await fails(provider, "안녕", dimensions=3) is FailureKind.BAD_REQUEST
    async with llama_server(directory / f"{MODEL}.gguf") as server, embedder(server) as provider:
        await server.health(200)
        assert await fails(provider, "안녕") is FailureKind.UNSUPPORTED


async def test_in_router_mode_it_is_loaded_found_well_and_unloaded(directory: Path) -> None:
    async with llama_router(directory, *EMBEDS) as server:
        setup = Setup(server.url + "/v1", {MODEL: Backend(embeds=True, load_ms=30_000)})
        provider = build("openai", setup)
        held = residency("llama-server", setup, provider)
        assert held is not None
        assert isinstance(provider, Embedder)
        await held.load(MODEL)
        await held.generates(MODEL, 10_000)
        assert len((await ask(provider, *TEXTS)).embeddings or ()) == 3
        await held.unload(MODEL)
        assert await held.models() == {}
        await held.aclose()
        await provider.aclose()
