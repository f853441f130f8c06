"""A real llama-server in router mode, with room for one model: what is loaded, counted by the processes it starts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters.providers import Backend, Setup, build, residency
from router.errors import AttemptError
from router.ports import Call, Held, Progress, Provider, Residency
from schemas.failure import FailureKind
from schemas.request import Chat
from tests.support import tiny_gguf
from tests.support.llama_server import LlamaServer, llama_router, llama_server

pytestmark = pytest.mark.engine

A, B, LARGE, BROKEN, ABSENT = "architect", "coder", "large", "broken", "absent"
KOREAN = Chat.model_validate(
    {"messages": [{"role": "user", "content": "안녕하세요, 짧게 답해 주세요"}], "max_tokens": 5}
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    for name in (A, B):
        tiny_gguf.write(models / f"{name}.gguf", tiny_gguf.Shape(eos=-30))
    tiny_gguf.write(models / f"{LARGE}.gguf", tiny_gguf.LARGE, hollow=True)
    (models / f"{BROKEN}.gguf").write_bytes(b"GGUF and nothing else")
    return models


@asynccontextmanager
async def over(server: LlamaServer, load_ms: int = 30_000) -> AsyncIterator[tuple[Residency, Provider]]:
    setup = Setup(server.url + "/v1", dict.fromkeys((A, B, LARGE, BROKEN, ABSENT), Backend(load_ms=load_ms)))
    provider = build("openai", setup)
    held = residency("llama-server", setup, provider)
    assert held is not None
    try:
        yield held, provider
    finally:
        await held.aclose()
        await provider.aclose()


async def failing(doing: Any) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        await doing
    return caught.value


async def empty(held: Residency) -> None:
    """Wait, doing nothing about it, until nothing is in memory or on its way there."""
    async with asyncio.timeout(20):
        while await held.models():
            await asyncio.sleep(0.01)


async def test_models_take_turns_and_every_turn_is_one_load(directory: Path) -> None:
    async with llama_router(directory) as server, over(server) as (held, provider):
        assert await held.models() == {}
        for name in (A, B, A):
            await held.load(name)
            assert await held.models() == {name: Held(context_tokens=1024)}
            for _ in range(2):
                answer = await provider.chat(Call(name, KOREAN, 10_000, 10_000), Progress())
                assert answer.usage is not None
                assert answer.usage.tokens_out == 5
            await held.generates(name, 10_000)
            await held.load(name)  # it is there
            process = server.child(name)
            await held.unload(name)
            assert not process.is_running()
            assert await held.models() == {}
            await held.unload(name)  # it is gone
        assert server.spawned() == [A, B, A]


async def test_a_load_that_would_push_another_out_is_refused_before_it_does(directory: Path) -> None:
    async with llama_router(directory) as server, over(server) as (held, _):
        await held.load(A)
        error = await failing(held.load(B))
        assert error.failure.kind is FailureKind.INSUFFICIENT_MEMORY
        assert f"which holds {A}: unload one first" in error.failure.message
        assert (server.spawned(), set(await held.models())) == ([A], {A})
    async with llama_router(directory, places=2) as server, over(server) as (held, _):
        await asyncio.gather(held.load(A), held.load(B))
        assert set(await held.models()) == {A, B}


async def test_a_cancelled_load_and_a_late_one_are_given_up(directory: Path) -> None:
    async with llama_router(directory) as server, over(server) as (held, _), over(server, 1) as (hasty, _provider):
        loading = asyncio.create_task(held.load(LARGE))
        while not (await held.models()).get(LARGE, Held()).loading:
            await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await empty(held)
        error = await failing(hasty.load(LARGE))
        assert error.failure.kind is FailureKind.SILENCE
        await empty(held)
        await held.load(A)
        assert server.spawned() == [LARGE, LARGE, A]


async def test_a_model_that_cannot_be_loaded_and_one_that_is_not_there(directory: Path) -> None:
    async with llama_router(directory) as server, over(server) as (held, _):
        broken = await failing(held.load(BROKEN))
        assert broken.failure.kind is FailureKind.SERVER_ERROR
        assert f"{BROKEN} could not be loaded: its process ended with 1" in broken.failure.message
        for doing in (held.load(ABSENT), held.unload(ABSENT)):
            error = await failing(doing)
            assert error.failure.kind is FailureKind.UNUSABLE
            assert f"{ABSENT} is not among the models" in error.failure.message
        assert await held.models() == {}
        await held.load(A)  # what failed takes no place


async def test_a_process_that_hangs_is_found_by_one_token_and_by_nothing_else(directory: Path) -> None:
    async with llama_router(directory) as server, over(server) as (held, provider):
        await held.load(A)
        process = server.child(A)
        process.suspend()
        try:
            assert (await provider.probe())[A] is None
            assert set(await held.models()) == {A}
            await held.load(A)
            error = await failing(held.generates(A, 300))
        finally:
            process.resume()
        assert error.failure.kind is FailureKind.SILENCE
        assert f"{A} generated nothing for 300 ms" in error.failure.message
        await held.generates(A, 10_000)


async def test_a_process_that_died_is_not_in_memory_and_may_be_loaded_again(directory: Path) -> None:
    async with llama_router(directory) as server, over(server) as (held, _):
        await held.load(A)
        process = server.child(A)
        process.kill()
        await empty(held)
        await held.load(A)
        assert server.spawned() == [A, A]
        assert server.child(A) != process


async def test_what_sleeps_is_not_in_memory_and_wakes_when_it_is_loaded(directory: Path) -> None:
    async with llama_router(directory, "--sleep-idle-seconds", "1") as server, over(server) as (held, _):
        await held.load(A)
        await empty(held)
        await held.load(A)
        assert set(await held.models()) == {A}
        assert server.spawned() == [A]


async def test_a_key_is_needed_where_one_is_set(directory: Path) -> None:
    async with llama_router(directory, "--api-key", "열쇠-없음".encode().hex()) as server, over(server) as (held, _):
        assert (await failing(held.load(A))).failure.kind is FailureKind.AUTH


async def test_a_server_that_holds_one_model_is_none_and_one_that_is_away_is_away(directory: Path) -> None:
    async with llama_server(directory / f"{A}.gguf") as server, over(server) as (held, _):
        await server.health(200)
        error = await failing(held.models())
        assert error.failure.kind is FailureKind.MALFORMED
        assert "is it a llama-server started without a model?" in error.failure.message
        await server.kill()
        for doing in (held.models(), held.load(A), held.unload(A), held.generates(A, 100)):
            assert (await failing(doing)).failure.kind is FailureKind.CONNECTION


def test_no_process_is_left_behind(directory: Path) -> None:
    """Of the servers above, which were asked to end."""
    found = [one.info for one in psutil.process_iter(["pid", "cmdline"])]
    assert [one["pid"] for one in found if str(directory) in " ".join(one["cmdline"] or ())] == []
