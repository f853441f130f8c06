"""Two models of 900 MB that take turns in a real llama-server with room for one: its loads, ours and in order.

In order: each request straight to the server once the one before is answered, and the server makes the room itself, as
first come first served has it. Ours: the same requests, as fast as they come, over a real bus to a real node. What is
counted are the processes that the server starts.
"""

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from ops.node import node
from schemas import LlmRequest
from schemas.request import Preferences
from tests.support import tiny_gguf
from tests.support.inside import inside
from tests.support.llama_server import LlamaServer, llama_router

NAMES = ("architect", "coder")
NODE = "mini"
REQUESTS = 40
EVERY_S = 0.02
"""Faster than models can change places: what takes its time in order piles up."""
TOKENS = 4
SHAPE = tiny_gguf.Shape(layers=24, embd=1024, heads=16, eos=-30)
"""900 MB."""
SMALL = tiny_gguf.Shape(eos=-30)
PATIENCE_S = 120


@dataclass(frozen=True, slots=True)
class Took:
    """What a trace cost."""

    loads: int
    seconds: float


def trace(requests: int) -> list[tuple[str, str]]:
    """(model, prompt): two agents that speak by turns."""
    return [(NAMES[at % 2], f"{at}번째 질문: 다음은 무엇인가요?") for at in range(requests)]


async def compare(quick: bool) -> tuple[Took, Took]:
    """Ours, and in order. `quick`: models of 4 MB, all asked at once."""
    asks = trace(REQUESTS)
    with tempfile.TemporaryDirectory(prefix="llmbus-models-") as directory:
        models = Path(directory)
        for name in NAMES:
            tiny_gguf.write(models / f"{name}.gguf", SMALL if quick else SHAPE)
        async with llama_router(models) as server:
            begun_s = time.monotonic()
            await in_order(server, asks)
            theirs = Took(len(server.spawned()), time.monotonic() - begun_s)
        async with llama_router(models) as server:
            ours = await over_the_bus(server, asks, 0 if quick else EVERY_S)
    return ours, theirs


async def in_order(server: LlamaServer, asks: list[tuple[str, str]]) -> None:
    # A connection each: the server closes some after an answer without having said so.
    once = {"Connection": "close"}
    async with httpx.AsyncClient(base_url=server.url, headers=once, trust_env=False, timeout=PATIENCE_S) as http:
        for model, prompt in asks:
            body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS}
            (await http.post("/v1/chat/completions", json=body)).raise_for_status()


async def over_the_bus(server: LlamaServer, asks: list[tuple[str, str]], every_s: float) -> Took:
    async with inside(nodes=False, policy=policy(server.url)) as bus, node(bus.url, NODE, environ={}):
        begun_s = time.monotonic()

        async def ask(at: int, model: str, prompt: str) -> None:
            await asyncio.sleep(at * every_s)
            preferences = Preferences(max_tokens=TOKENS)
            request = LlmRequest(prompt=prompt, model=model, preferences=preferences, deadline_ms=PATIENCE_S * 1000)
            reply = await bus.client.ask(request)
            if (reply.model, len(reply.attempts)) != (model, 1):
                raise RuntimeError(f"{model} was asked, and {reply.model} answered at attempt {len(reply.attempts)}")

        await asyncio.gather(*(ask(at, *each) for at, each in enumerate(asks)))
        return Took(len(server.spawned()), time.monotonic() - begun_s)


def policy(url: str) -> str:
    """A machine with memory for one of the two and what must stay free beside it."""
    models = {
        name: {
            "nodes": [NODE], "provider": "llama", "backend": name, "memory_gb": 1.0, "context_tokens": 1024,
            "quality": 0.5, "tokens_per_s": 30, "first_token_ms": 60_000,
            "price": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0},
        }
        for name in NAMES
    }  # fmt: skip
    return yaml.safe_dump(
        {
            "version": 1,
            "nodes": {NODE: {"memory_gb": 3.5, "urls": {"llama": f"{url}/v1"}}},
            "providers": {"llama": {"dialect": "openai", "residency": "llama-server"}},
            "models": models,
            "capabilities": {"chat": {"models": list(NAMES)}},
            "default": {"models": list(NAMES)},
        }
    )
