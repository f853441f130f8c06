"""The stand-in of Ollama is held to what Ollama's source says, and its own Python client reads what it answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import ollama
import pytest

from tests.support.fake_ollama import FakeModel, FakeOllama

KOREAN = "안녕하세요, 대기열에 대해 알려 주세요"
TURNS = [{"role": "user", "content": KOREAN}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@asynccontextmanager
async def serving(
    models: dict[str, FakeModel], **limits: Any
) -> AsyncIterator[tuple[FakeOllama, ollama.AsyncClient, httpx.AsyncClient]]:
    """The stand-in, its vendor's client and a bare one."""
    async with FakeOllama(models, **limits) as fake, httpx.AsyncClient(base_url=fake.url, trust_env=False) as http:
        client = ollama.AsyncClient(host=fake.url, trust_env=False)
        try:
            yield fake, client, http
        finally:
            await client._client.aclose()


async def test_its_client_reads_a_stream_and_the_counts_at_its_end() -> None:
    async with serving({"m": FakeModel()}) as (_, client, _http):
        lines = [line async for line in await client.chat("m", TURNS, stream=True)]
    *said, last = lines
    assert "".join(line.message.content or "" for line in said) == KOREAN
    assert [line.done for line in lines] == [False] * len(said) + [True]
    assert (last.done_reason, last.message.content, last.eval_count) == ("stop", "", len(said))
    assert last.eval_duration == 1_000_000 * len(said)
    assert (last.total_duration or 0) >= (last.load_duration or 0) > 0
    assert all(line.eval_count is None and line.total_duration is None for line in said)


async def test_unstreamed_it_is_one_object() -> None:
    model = FakeModel(thinking=("음, ", "글쎄"), tool_calls=(("weather", {"도시": "서울"}), ("clock", {})))
    async with serving({"m": model}) as (_, client, _http):
        answer = await client.chat("m", TURNS, tools=[TOOL])
        generated = await client.generate("m", KOREAN)
    assert (answer.message.content, answer.message.thinking, answer.done_reason) == (KOREAN, "음, 글쎄", "stop")
    calls = answer.message.tool_calls or ()
    assert [(call.function.name, dict(call.function.arguments)) for call in calls] == [
        ("weather", {"도시": "서울"}),
        ("clock", {}),
    ]
    assert (generated.response, generated.done) == (KOREAN, True)


async def test_what_is_zero_is_left_out() -> None:
    async with serving({"m": FakeModel(answer=())}) as (_, _client, http):
        body = (
            await http.post("/api/chat", json={"model": "m", "messages": [{"role": "user", "content": "x"}]})
        ).json()
    assert body["done"] is True
    assert {"eval_count", "eval_duration", "prompt_eval_count"}.isdisjoint(body)
    assert body["total_duration"] > 0


async def test_it_thinks_unless_told_not_to_and_only_where_it_can() -> None:
    async with serving({"deep": FakeModel(thinking=("음",)), "flat": FakeModel()}) as (_, client, http):
        thoughts = [
            (await client.chat("deep", TURNS, think=think)).message.thinking for think in (None, True, "high", False)
        ]
        assert thoughts == ["음", "음", "음", None]
        with pytest.raises(ollama.ResponseError, match='"flat" does not support thinking') as refused:
            await client.chat("flat", TURNS, think=True)
        assert refused.value.status_code == 400
        unknown = await http.post("/api/chat", json={"model": "deep", "messages": TURNS, "think": "very"})
    assert (unknown.status_code, list(unknown.json())) == (400, ["error"])


async def test_what_a_model_or_the_dialect_does_not_know_is_refused_before_the_stream() -> None:
    refusals: list[tuple[dict[str, Any], int, str]] = [
        ({"messages": TURNS}, 400, "model is required"),
        ({"model": "none", "messages": TURNS}, 404, "model 'none' not found"),
        ({"model": "m", "messages": TURNS, "tools": [TOOL]}, 400, "does not support tools"),
        ({"model": "m", "messages": TURNS, "format": "xml"}, 500, "invalid format"),
        ({"model": "m", "messages": TURNS, "options": {"num_ctx": "big"}}, 500, "must be of type"),
        ({"model": "m", "messages": TURNS, "keep_alive": "3600"}, 400, "missing unit in duration"),
    ]
    async with serving({"m": FakeModel(tools=False)}) as (_, _client, http):
        for body, status, words in refusals:
            answer = await http.post("/api/chat", json={**body, "stream": True})
            assert answer.status_code == status
            assert words in answer.json()["error"]
        assert (await http.post("/api/chat", content=b"{")).status_code == 400
        ignored = {"model": "m", "messages": TURNS, "stream": False, "options": {"nonsense": "x"}}
        assert (await http.post("/api/chat", json=ignored)).json()["done"] is True


async def test_a_wanted_format_is_obeyed() -> None:
    schema = {"type": "object", "properties": {"mood": {"enum": ["좋음", "나쁨"]}, "busy": {"type": "boolean"}}}
    async with serving({"m": FakeModel()}) as (_, client, _http):
        answer = await client.chat("m", TURNS, format=schema)
        any_json = await client.chat("m", TURNS, format="json")
    assert json.loads(answer.message.content or "") == {"mood": "좋음", "busy": True}
    assert json.loads(any_json.message.content or "") == {}


async def test_an_answer_ends_with_its_limit_or_with_the_context() -> None:
    words = "하나 둘 셋 넷 다섯 여섯 일곱 여덟"
    async with serving({"m": FakeModel(answer=tuple(words.split()))}) as (_, client, _http):
        cut = await client.chat("m", TURNS, options={"num_predict": 3})
        endless = await client.chat("m", TURNS, options={"num_predict": -1})
        full = await client.chat("m", TURNS, options={"num_ctx": 8})
    assert [(one.eval_count, one.done_reason) for one in (cut, endless)] == [(3, "length"), (8, "stop")]
    assert (full.done_reason, (full.prompt_eval_count or 0) + (full.eval_count or 0)) == ("length", 8)


async def test_the_oldest_turns_are_lost_without_a_word_unless_they_may_not_be() -> None:
    long = [{"role": "user", "content": "가" * 400}, *TURNS]
    async with serving({"m": FakeModel()}) as (_, client, http):
        shortened = await client.chat("m", long, options={"num_ctx": 50})
        body = {"model": "m", "messages": long, "truncate": False, "options": {"num_ctx": 50}}
        refused = await http.post("/api/chat", json=body)
    assert shortened.prompt_eval_count == len(KOREAN) // 4
    assert (refused.status_code, "context length" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("keep_alive", "stays_s"), [(None, 300), (60, 60), ("10m", 600), ("1h30m", 5400), (-1, 9e9), ("-1m", 9e9)]
)
async def test_how_long_a_model_stays_is_the_last_requests_word(keep_alive: Any, stays_s: float) -> None:
    async with serving({"m": FakeModel()}) as (_, client, _http):
        await client.chat("m", TURNS, keep_alive=5)
        await client.chat("m", TURNS, keep_alive=keep_alive)
        [row] = (await client.ps()).models
    assert row.expires_at is not None
    left_s = (row.expires_at - datetime.now(UTC)).total_seconds()
    assert left_s > 200 * 365 * 86400 if stays_s == 9e9 else abs(left_s - stays_s) < 30


async def test_loading_and_unloading_without_a_chat() -> None:
    async with serving({"m": FakeModel(gb=2), "llama3:latest": FakeModel()}, on_gpu=False) as (fake, client, http):
        loaded = await client.generate("m")
        assert (loaded.done_reason, loaded.response, loaded.eval_count) == ("load", "", None)
        [row] = (await client.ps()).models
        assert (row.model, row.size, row.size_vram, row.context_length) == ("m", 2_000_000_000, 0, 4096)
        for _ in range(2):  # also when it is not loaded
            assert (await client.chat("m", [], keep_alive=0)).done_reason == "unload"
        assert (await http.get("/api/ps")).json() == {"models": []}
        await client.chat("llama3", [])
        assert fake.in_memory == {"llama3:latest"}
        with pytest.raises(ollama.ResponseError, match="not found"):
            await client.generate("none", keep_alive=0)


async def test_unloading_lets_what_runs_finish() -> None:
    async with serving({"m": FakeModel()}) as (fake, client, _http):
        await client.generate("m")
        fake.gate.clear()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(client.chat("m", TURNS, keep_alive="5m"))
            while not fake.memory.loaded["m"].active:
                await asyncio.sleep(0)
            assert (await client.generate("m", keep_alive=0)).done_reason == "unload"
            assert fake.in_memory == {"m"}
            fake.gate.set()
        assert running.result().message.content == KOREAN
        assert fake.in_memory == set()


async def test_leaving_gives_up_the_load_even_when_others_wait_for_it() -> None:
    async with serving({"m": FakeModel()}) as (fake, client, _http):
        fake.load_gate.clear()
        async with asyncio.TaskGroup() as group:
            first = group.create_task(client.chat("m", TURNS))
            await fake.load_began.wait()
            [row] = (await client.ps()).models
            assert row.model == "m", "what is loading is listed too"
            second = group.create_task(client.chat("m", TURNS))
            while fake.memory._waiting < 2:
                await asyncio.sleep(0)
            fake.load_began.clear()
            first.cancel()
            await fake.load_began.wait()
            fake.load_gate.set()
        assert fake.cancelled.is_set()
        assert second.result().message.content == KOREAN
        assert fake.loads == ["m"]


async def test_only_what_needs_a_load_is_refused_by_a_full_queue() -> None:
    async with serving({"m": FakeModel(), "other": FakeModel()}, max_queue=1) as (fake, client, http):
        await client.generate("m")
        fake.load_gate.clear()
        fake.load_began.clear()
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(client.generate("other"))
            await fake.load_began.wait()
            # Another context is a load too.
            body = {"model": "m", "messages": TURNS, "options": {"num_ctx": 99}}
            refused = await http.post("/api/chat", json=body)
            assert (refused.status_code, "retry-after" in refused.headers) == (503, False)
            assert refused.json()["error"].startswith("server busy, please try again.")
            assert (await client.chat("m", TURNS)).message.content == KOREAN
            fake.load_gate.set()
        assert loading.result().done_reason == "load"


async def test_the_shortest_keep_alive_goes_first_not_the_least_recently_used() -> None:
    models = {name: FakeModel() for name in ("a", "b", "c", "d")}
    async with serving(models, max_loaded=3) as (fake, client, _http):
        for name, keep_alive in (("a", "1h"), ("b", "1m"), ("c", "10m")):
            await client.generate(name, keep_alive=keep_alive)
        await client.generate("b", keep_alive="1m")
        assert [row.model for row in (await client.ps()).models] == ["a", "c", "b"]
        await client.generate("d")
        assert fake.evictions == ["b"]


async def test_a_model_in_use_is_not_evicted_the_load_waits() -> None:
    async with serving({"a": FakeModel(gb=3), "b": FakeModel(gb=3)}, memory_gb=4) as (fake, client, _http):
        await client.generate("a")
        fake.gate.clear()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(client.chat("a", TURNS))
            while not fake.memory.loaded["a"].active:
                await asyncio.sleep(0)
            loading = group.create_task(client.generate("b"))
            while not fake.memory._waiting:
                await asyncio.sleep(0)
            assert (fake.in_memory, fake.evictions) == ({"a"}, [])
            fake.gate.set()
        assert (running.result().done_reason, loading.result().done_reason) == ("stop", "load")
        assert fake.evictions == ["a"]


async def test_an_error_amid_a_stream_has_no_done_and_a_dead_stream_has_neither() -> None:
    async with serving({"m": FakeModel()}) as (fake, client, http):
        fake.faults.extend(["error_midway", "no_done", "error_first"])
        with pytest.raises(ollama.ResponseError, match="running the model"):
            async for _ in await client.chat("m", TURNS, stream=True):
                pass
        silent = await http.post("/api/chat", json={"model": "m", "messages": TURNS})
        lines = [json.loads(line) for line in silent.text.splitlines()]
        assert (silent.status_code, silent.headers["content-type"]) == (200, "application/x-ndjson")
        assert lines
        assert all(line["done"] is False and "error" not in line for line in lines)
        early = await http.post("/api/chat", json={"model": "m", "messages": TURNS})
        assert (early.status_code, list(early.json())) == (500, ["error"])


async def test_its_pages_and_what_it_does_not_have() -> None:
    async with serving({"m": FakeModel(thinking=("음",))}) as (_, client, http):
        [listed] = (await client.list()).models
        assert (listed.model, listed.size, listed.details and listed.details.format) == ("m", 1_000_000_000, "gguf")
        assert listed.modified_at is not None
        assert datetime.now(UTC) - listed.modified_at < timedelta(days=36500)
        assert (await client.show("m")).capabilities == ["completion", "tools", "thinking"]
        assert (await http.get("/")).text == "Ollama is running"
        assert (await http.head("/")).status_code == 200
        assert (await http.get("/api/version")).json() == {"version": "0.33.0"}
        missing = [await http.get("/health"), await http.get("/metrics"), await http.delete("/api/unload/m")]
        assert [(page.status_code, page.text) for page in missing] == [(404, "404 page not found")] * 3
        wrong = await http.get("/api/chat")
        assert (wrong.status_code, wrong.headers["content-type"].startswith("text/plain")) == (405, True)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:1", 200), ("192.168.0.7", 200), ("mini.local", 200), ("box.internal", 200), ("example.com", 403)],
)
async def test_a_foreign_host_name_is_turned_away(host: str, status: int) -> None:
    async with serving({}) as (_, _client, http):
        answer = await http.get("/api/tags", headers={"Host": host})
    assert answer.status_code == status
    assert answer.text == "" or status == 200
