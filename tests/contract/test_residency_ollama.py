"""What Ollama holds in memory, seen and changed through its API, against its stand-in over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from adapters.providers import Backend, Setup, build, residency
from ops.bench import Bench
from router.errors import AttemptError
from router.ports import Call, Held, Progress, Provider, Residency
from schemas.failure import FailureKind
from schemas.policy import Policy
from schemas.request import Chat
from tests.support.fake_ollama import FakeModel, FakeOllama
from tests.support.scripted_upstream import ScriptedUpstream

KOREAN = Chat.model_validate({"messages": [{"role": "user", "content": "안녕하세요, 무엇이 메모리에 있나요?"}]})
JUDGE, CODER, WRITER = "llama3.1:8b", "qwen3-coder:32b", "gemma3:12b"
SIZES = {JUDGE: FakeModel(gb=6), CODER: FakeModel(gb=19), WRITER: FakeModel(gb=9)}
BACKENDS = {
    JUDGE: Backend(num_ctx=16_000, resident=True),
    CODER: Backend(num_ctx=32_000, load_ms=5_000),
    WRITER: Backend(num_ctx=8_000, load_ms=5_000),
}
WORKER_S = 2 * 3600


@asynccontextmanager
async def over(url: str, backends: dict[str, Backend] | None = None) -> AsyncIterator[tuple[Residency, Provider]]:
    """The residency and the provider that a node makes of its policy."""
    setup = Setup(url, BACKENDS if backends is None else backends)
    provider = build("ollama", setup)
    held = residency("ollama", setup, provider)
    assert held is not None
    try:
        yield held, provider
    finally:
        await held.aclose()
        await provider.aclose()


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[tuple[FakeOllama, Residency, Provider]]:
    async with FakeOllama(SIZES, **limits) as ollama, over(ollama.url) as (held, provider):
        yield ollama, held, provider


async def ask(provider: Provider, name: str, **more: Any) -> str:
    answer = await provider.chat(Call(name, KOREAN.model_copy(update=more), 5_000, 5_000), Progress())
    return answer.text


async def failing(doing: Any) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        await doing
    return caught.value


async def test_what_is_held_with_its_memory_its_context_and_its_end() -> None:
    async with serving() as (ollama, held, _):
        assert await held.models() == {}
        await held.load(JUDGE)
        await held.load(CODER)
        found = await held.models()
        assert found.keys() == ollama.in_memory == {JUDGE, CODER}
        assert found[JUDGE] == Held(6_000_000_000, 6_000_000_000, context_tokens=16_000)
        assert found[CODER].context_tokens == 32_000
        assert found[CODER].expires_at_ms is not None
        kept_s = ollama.memory.loaded[CODER].keep_alive_s
        assert (kept_s, ollama.memory.loaded[JUDGE].keep_alive_s) == (WORKER_S, float("inf"))


async def test_a_model_without_a_gpu_is_told_as_such() -> None:
    async with serving(on_gpu=False) as (_, held, _provider):
        await held.load(WRITER)
        assert (await held.models())[WRITER].gpu_bytes == 0


async def test_a_chat_sends_what_the_load_sent_so_that_nothing_is_loaded_twice() -> None:
    async with serving() as (ollama, held, provider):
        for name in SIZES:
            await held.load(name)
            await ask(provider, name, temperature=0.5, max_tokens=3, seed=7)
            await held.generates(name, 5_000)
            await held.load(name)
        assert ollama.loads == [JUDGE, CODER, WRITER]
        for chat in ollama.chats:
            assert chat["options"]["num_ctx"] == BACKENDS[chat["model"]].num_ctx
            assert chat["keep_alive"] == (-1 if chat["model"] == JUDGE else WORKER_S)
    # The stand-in would show it: another context loads anew.
    async with FakeOllama(SIZES) as ollama, over(ollama.url) as (held, _), over(ollama.url, {}) as (_, other):
        await held.load(CODER)
        await ask(other, CODER)
        assert ollama.loads == [CODER, CODER]


async def test_what_a_scheduler_holds_does_not_leave_by_itself() -> None:
    async with FakeOllama(SIZES) as ollama, over(ollama.url, {CODER: Backend(resident=True)}) as (held, provider):
        await held.load(CODER)
        await ask(provider, CODER)
        assert (await held.models())[CODER].expires_at_ms is None


async def test_what_others_load_is_seen_and_a_name_without_a_tag_is_the_policys() -> None:
    models = {"llama3:latest": FakeModel(), "stranger:1b": FakeModel(gb=3)}
    async with FakeOllama(models) as ollama, over(ollama.url, {"llama3": Backend()}) as (held, _):
        async with over(ollama.url, {}) as (other, _provider):
            await other.load("stranger:1b")
        await held.load("llama3")
        assert {name: one.memory_bytes for name, one in (await held.models()).items()} == {
            "llama3": 1_000_000_000,
            "stranger:1b": 3_000_000_000,
        }
        await held.unload("llama3")
        assert ollama.in_memory == {"stranger:1b"}


async def test_for_a_load_without_room_ollama_throws_out_a_worker_and_never_the_resident() -> None:
    async with serving(memory_gb=26) as (ollama, held, _):
        for name in (CODER, JUDGE, WRITER):
            await held.load(name)
        assert ollama.evictions == [CODER]
        assert (await held.models()).keys() == {JUDGE, WRITER}


async def test_unloading_waits_until_the_memory_is_really_given_back() -> None:
    async with serving() as (ollama, held, _):
        await held.load(CODER)
        ollama.unload_gate.clear()
        unloading = asyncio.create_task(held.unload(CODER))
        while not ollama.memory.loaded[CODER].leaving:
            await asyncio.sleep(0.001)
        for _ in range(3):
            assert CODER in await held.models()
        assert not unloading.done()
        ollama.unload_gate.set()
        await unloading
        assert await held.models() == {}
        await held.unload(CODER)  # what is gone already is gone at once


async def test_unloading_what_generates_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.providers.ollama_residency.UNLOAD_MS", 50)
    async with serving() as (ollama, held, provider):
        ollama.gate.clear()
        asking = asyncio.create_task(ask(provider, CODER))
        while not ollama.chats:
            await asyncio.sleep(0.001)
        error = await failing(held.unload(CODER))
        ollama.gate.set()
        assert (await asking).startswith("안녕하세요")
    assert error.failure.kind is FailureKind.SILENCE
    assert "it generates, or it hangs" in error.failure.message


async def test_while_it_loads_it_is_told_as_loading_and_cancelling_gives_the_load_up() -> None:
    async with serving() as (ollama, held, _):
        ollama.load_gate.clear()
        loading = asyncio.create_task(held.load(CODER))
        await ollama.load_began.wait()
        assert (await held.models())[CODER].loading
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await asyncio.wait_for(ollama.cancelled.wait(), 5)
        while ollama.memory.loading:
            await asyncio.sleep(0.001)
        assert await held.models() == {}
        ollama.load_gate.set()
        await held.load(CODER)
        assert ollama.loads == [CODER]
        assert not (await held.models())[CODER].loading


async def test_a_load_that_takes_too_long_is_given_up() -> None:
    async with FakeOllama(SIZES) as ollama, over(ollama.url, {CODER: Backend(load_ms=50)}) as (held, _):
        ollama.load_gate.clear()
        error = await failing(held.load(CODER))
        await asyncio.wait_for(ollama.cancelled.wait(), 5)
    assert error.failure.kind is FailureKind.SILENCE
    assert f"{CODER} was not in memory after 50 ms" in error.failure.message


async def test_a_model_that_is_not_on_disk() -> None:
    async with FakeOllama({JUDGE: FakeModel()}) as ollama, over(ollama.url) as (held, _):
        for doing in (held.load(CODER), held.unload(CODER)):
            error = await failing(doing)
            assert error.failure.kind is FailureKind.UNUSABLE
            assert f"run `ollama pull {CODER}` there" in error.failure.message
        assert await held.models() == {}


async def test_a_model_that_the_machine_has_no_room_for() -> None:
    async with serving(memory_gb=16) as (ollama, held, provider):
        error = await failing(held.load(CODER))
        assert error.failure.kind is FailureKind.INSUFFICIENT_MEMORY
        assert "19.0 GiB" in error.failure.message
        asked = await failing(ask(provider, CODER))
        assert asked.failure.kind is FailureKind.INSUFFICIENT_MEMORY
        assert (ollama.loads, await held.models()) == ([], {})


async def test_a_full_queue_is_a_server_error() -> None:
    async with serving(max_queue=0) as (_, held, _provider):
        error = await failing(held.load(CODER))
    assert (error.failure.kind, error.failure.status) == (FailureKind.SERVER_ERROR, 503)


async def test_a_server_that_is_away() -> None:
    async with FakeOllama(SIZES) as ollama:
        url = ollama.url
    async with over(url) as (held, _):
        for doing in (held.models(), held.load(CODER), held.unload(CODER), held.generates(CODER, 100)):
            assert (await failing(doing)).failure.kind is FailureKind.CONNECTION


async def test_a_hanging_runner_is_found_by_one_token_and_by_nothing_else() -> None:
    async with serving() as (ollama, held, provider):
        await held.load(CODER)
        ollama.faults.append("stall_first")
        assert (await provider.probe())[CODER] is None
        assert CODER in await held.models()
        await held.load(CODER)
        error = await failing(held.generates(CODER, 50))
        assert error.failure.kind is FailureKind.SILENCE
        assert f"{CODER} generated nothing for 50 ms" in error.failure.message
        await asyncio.wait_for(ollama.cancelled.wait(), 5)
        await held.generates(CODER, 5_000)
        assert [chat["options"]["num_predict"] for chat in ollama.chats] == [1, 1]


@pytest.mark.parametrize("page", [b"<html>", b"[]", b'{"models":[{"name":"m"}]}', b'{"models":[{"size":1}]}'])
async def test_a_page_that_is_not_ollamas_is_malformed(page: bytes) -> None:
    async with (
        ScriptedUpstream(lambda exchange: exchange.reply(200, page)) as upstream,
        over(upstream.url) as (held, _),
    ):
        assert (await failing(held.models())).failure.kind is FailureKind.MALFORMED


async def test_times_as_go_writes_them() -> None:
    row = {"name": CODER, "size": 5, "size_vram": 2, "context_length": 4096}
    ends = {"2026-08-21T12:00:00.123456789+09:00": 1_787_281_200_123, "2318-08-21T00:00:00Z": None}
    pages = [json.dumps({"models": [{**row, "expires_at": end}]}).encode() for end in ends]
    async with (
        ScriptedUpstream(lambda exchange: exchange.reply(200, pages.pop(0))) as upstream,
        over(upstream.url) as (held, _),
    ):
        found = [(await held.models())[CODER] for _ in ends]
    assert found == [Held(5, 2, context_tokens=4096, expires_at_ms=end) for end in ends.values()]


def test_where_it_is_no_business_of_ours_there_is_none() -> None:
    setup = Setup("http://127.0.0.1:9")
    assert residency("none", setup, build("openai", setup)) is None
    with pytest.raises(ValueError, match="a url"):
        residency("ollama", Setup("nowhere"), build("loopback", Setup()))


def policy(url: str) -> Policy:
    model = {"nodes": ["mac"], "provider": "ours", "quality": 0.5, "tokens_per_s": 30}
    return Policy.model_validate(
        {
            "version": 1,
            "nodes": {"mac": {"urls": {"ours": url}}},
            "providers": {"ours": {"dialect": "ollama"}, "theirs": {"dialect": "openai", "url": "http://127.0.0.1:9/v1"}},
            "models": {
                "judge": {**model, "backend": JUDGE, "context_tokens": 16_000, "resident": True},
                "coder": {**model, "backend": CODER, "context_tokens": 32_000, "first_token_ms": 60},
                "gpt": {**model, "provider": "theirs", "backend": "gpt-4.1", "context_tokens": 1_000_000},
            },
            "capabilities": {"chat": {"models": ["coder"]}},
            "default": {"models": ["coder"]},
        }
    )  # fmt: skip


async def test_a_node_has_the_residency_that_its_policy_describes() -> None:
    async with FakeOllama(SIZES) as ollama:
        bench = Bench(policy(ollama.url), "mac", stand_in=False, allow_crash=False, environ={})
        try:
            assert bench.residencies.keys() == {"ours"}
            held = bench.residencies["ours"]
            await held.load(JUDGE)
            assert ollama.memory.loaded[JUDGE].options == {"num_ctx": 16_000}
            assert (await held.models())[JUDGE].expires_at_ms is None
            ollama.load_gate.clear()
            assert "not in memory after 60 ms" in (await failing(held.load(CODER))).failure.message
        finally:
            await bench.aclose()
