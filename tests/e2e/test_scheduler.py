"""A node that manages what its Ollama holds: few loads, nobody forgotten, what cannot be loaded goes elsewhere."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import yaml
from structlog.testing import capture_logs

from ops.node import node
from schemas import Heartbeat, Host, LlmRequest, Reply
from subjects.streams import NODES_BUCKET
from tests.support.fake_ollama import FakeModel, FakeOllama
from tests.support.inside import Inside, inside

SIZES_GB = {"architect": 5.0, "coder": 4.0, "reviewer": 1.5}
MACHINE_GB = 8.0
FIRST_TOKEN_MS = 1_500
FREE = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}


@dataclass(slots=True)
class Machine:
    bus: Inside
    ollama: FakeOllama

    async def ask(self, model: str, **more: object) -> Reply:
        request = LlmRequest.model_validate({"prompt": f"{model}에게", "model": model, **more})
        return await self.bus.client.ask(request)

    async def state(self) -> Heartbeat:
        letter = await self.bus.bus.last(f"KV_{NODES_BUCKET}", f"$KV.{NODES_BUCKET}.mini")
        assert letter is not None
        return Heartbeat.decode(letter.data)


def policy(url: str, **fallbacks: list[str]) -> str:
    models = {
        name: {
            "nodes": ["mini"], "provider": "ollama", "backend": f"{name}:x", "memory_gb": gb, "context_tokens": 8_000,
            "quality": 0.5, "tokens_per_s": 1000, "price": FREE, "first_token_ms": FIRST_TOKEN_MS,
        }
        for name, gb in SIZES_GB.items()
    }  # fmt: skip
    echo = {"nodes": ["spare"], "provider": "loopback", "backend": "echo", "context_tokens": 8_000, "quality": 0.1}
    return yaml.safe_dump(
        {
            "version": 1,
            "nodes": {"mini": {"memory_gb": MACHINE_GB, "urls": {"ollama": url}}, "spare": {}},
            "providers": {"ollama": {"dialect": "ollama"}, "loopback": {"dialect": "loopback"}},
            "models": {**models, "echo": {**echo, "tokens_per_s": 1000, "price": FREE}},
            "capabilities": {"chat": {"models": ["coder"]}},
            "default": {"models": ["coder"]},
            "fallbacks": {"default": [], **fallbacks},
            "limits": {"breaker_open_ms": 100},
        }
    )


@asynccontextmanager
async def machine(*, gb: float = MACHINE_GB, **fallbacks: list[str]) -> AsyncIterator[Machine]:
    models = {f"{name}:x": FakeModel(gb=size, load_s=0.2) for name, size in SIZES_GB.items()}
    async with (
        FakeOllama(models, memory_gb=gb) as ollama,
        inside(nodes=False, policy=policy(ollama.url, **fallbacks)) as bus,
    ):
        for name in ("mini", "spare"):
            await bus.stack.enter_async_context(node(bus.url, name))
        yield Machine(bus, ollama)


async def test_agents_that_take_turns_cost_a_load_each_and_not_one_a_request() -> None:
    async with machine() as here:
        turns = ["architect", "coder"] * 10
        replies = await asyncio.gather(*(here.ask(model) for model in turns))
        assert [reply.model for reply in replies] == turns
        assert len(here.ollama.loads) == 2, here.ollama.loads
        assert here.ollama.evictions == []  # the room was made before each load, not by Ollama


async def test_models_that_fit_together_stay_together() -> None:
    async with machine() as here:
        for model in ("coder", "reviewer", "coder", "reviewer"):
            await here.ask(model)
        assert sorted(here.ollama.loads) == ["coder:x", "reviewer:x"]
        assert here.ollama.in_memory == {"coder:x", "reviewer:x"}


async def test_the_heartbeat_says_where_each_model_is() -> None:
    async with machine() as here:
        await here.ask("coder")
        async with asyncio.timeout(5):
            while (state := await here.state()).models["coder"].in_memory != "resident":
                await asyncio.sleep(0.05)
        assert state.models["architect"].in_memory == "absent"
        assert state.models["coder"].memory_bytes == 4_000_000_000


async def test_what_somebody_else_has_loaded_is_known_and_used() -> None:
    async with machine() as here:
        await here.ask("coder")
        here.ollama.memory.loaded.clear()  # thrown out behind the node's back
        assert (await here.ask("coder")).status == "ok"


async def test_a_model_that_cannot_be_loaded_is_replaced_by_the_next_target() -> None:
    async with machine(gb=3, default=["echo"]) as here:  # Ollama itself has less than the policy says
        reply = await here.ask("coder")
        assert reply.model == "echo"
        failure = reply.attempts[0].failure
        assert failure is not None
        assert failure.kind in ("insufficient_memory", "server_error")


async def test_a_request_called_off_while_its_model_loads_is_answered_and_leaves_no_place_taken() -> None:
    async with machine() as here:
        here.ollama.load_gate.clear()
        asked = asyncio.ensure_future(here.ask("coder", request_id="off"))
        await here.ollama.load_began.wait()
        await here.bus.client.cancel("off")
        reply = await here.bus.client.result("off", timeout_s=5)
        assert reply is not None
        assert reply.status == "cancelled"
        here.ollama.load_gate.set()
        await asyncio.gather(asked, return_exceptions=True)
        assert (await here.ask("coder")).status == "ok"


async def asked_until_it_answers(here: Machine, model: str) -> None:
    """Its breaker opened with the silence, and closes soon."""
    async with asyncio.timeout(10):
        while (await here.ask(model)).model != model:
            pass


async def test_a_model_that_hangs_is_unloaded_and_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.scheduler.ONE_TOKEN_MS", 50)
    async with machine(default=["echo"]) as here:
        here.ollama.faults.extend(["stall_first", "stall_first"])
        with capture_logs() as logs:
            assert (await here.ask("coder")).model == "echo"
            await asked_until_it_answers(here, "coder")
        (wedged,) = (line for line in logs if line["event"] == "model.wedged")
        assert wedged["model"] == "coder"
        assert "generated nothing for 50 ms" in wedged["why"]
        assert here.ollama.loads == ["coder:x", "coder:x"]


async def test_a_model_that_was_silent_once_and_is_well_stays() -> None:
    async with machine(default=["echo"]) as here:
        here.ollama.faults.append("stall_first")
        assert (await here.ask("coder")).model == "echo"
        await asked_until_it_answers(here, "coder")
        assert [chat["options"].get("num_predict") for chat in here.ollama.chats] == [None, 1, None]
        assert here.ollama.loads == ["coder:x"]


async def test_an_ollama_killed_under_load_loses_nothing_and_is_used_again() -> None:
    async with machine(default=["echo"]) as here:
        here.ollama.gate.clear()
        asked = [asyncio.ensure_future(here.ask(model)) for model in ["coder", "reviewer"] * 10]
        await here.ollama.load_began.wait()
        await here.ollama.die()
        replies = await asyncio.gather(*asked)
        assert {reply.model for reply in replies} == {"echo"}
        here.ollama.gate.set()
        await here.ollama.come_back()
        await asked_until_it_answers(here, "coder")


async def test_memory_that_another_program_takes_is_not_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    free = int(2e9)  # of 8: enough for the reviewer only
    monkeypatch.setattr("ops.bench.look", lambda: Host(memory_total_bytes=int(8e9), memory_free_bytes=free))
    monkeypatch.setattr("router.scheduler.LOOK_S", 0.05)
    async with machine() as here:
        asked = asyncio.ensure_future(here.ask("coder"))
        async with asyncio.timeout(5):
            while (await here.state()).models["coder"].waits_for != "memory_taken":
                await asyncio.sleep(0.05)
        assert here.ollama.loads == []
        free = int(8e9)
        assert (await asked).status == "ok"
        assert here.ollama.loads == ["coder:x"]
