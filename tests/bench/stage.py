"""A bus of processes whose models stand behind the benchmark's upstream, a client of it, and ears on what passes."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from adapters.bus import connect
from adapters.client import Client
from ops.broker import broker
from schemas.chunk import Chunk
from schemas.reply import Reply
from schemas.request import LlmRequest
from subjects import Chunk as ChunkSubject
from subjects import Outcome as OutcomeSubject
from subjects import Work as WorkSubject
from subjects import parse
from tests.bench.bus import roles
from tests.bench.load import TEXT
from tests.bench.upstream import Upstream, upstream

NAME = "bench"

SILENCE_MS = 500
SILENT = ("silent0", "silent1", "silent2")
STREAMS = 100
STREAM_TOKENS = 50
PATHS = {
    "second": "stream-8-0",
    "first_token": "stream-5-2",
    "fifty": f"stream-{STREAM_TOKENS}-20",
    "endless": "stream-100000-20",
    **dict.fromkeys(SILENT, "silent"),
}


def policy(upstreams: Upstream) -> str:
    urls = {"primary": f"{upstreams.primary_url}/primary"} | {
        name: f"{upstreams.url}/{path}" for name, path in PATHS.items()
    }
    model = {
        "nodes": [NAME], "backend": "m", "context_tokens": 100_000, "quality": 0.5, "tokens_per_s": 1000,
        "slots": 2 * STREAMS, "price": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0},
        "first_token_ms": 5000,
    }  # fmt: skip
    silent = {"first_token_ms": SILENCE_MS}
    return yaml.safe_dump(
        {
            "version": 1,
            "nodes": {NAME: {}},
            "providers": {name: {"dialect": "openai", "url": url} for name, url in urls.items()},
            "models": {name: {**model, "provider": name, **(silent if name in SILENT else {})} for name in urls},
            "capabilities": {"chat": {"models": ["primary"]}},
            "default": {"models": ["primary"]},
            "fallbacks": {"default": ["second"]},
            "guardrails": {
                "secrets": {"action": "redact"},
                "injection": {"action": "block", "threshold": 0.5},
            },
        }
    )


@dataclass(slots=True)
class Samples:
    """Milliseconds."""

    ms: list[float] = field(default_factory=list)

    def at(self, share: float) -> float:
        ordered = sorted(self.ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@dataclass(slots=True)
class Ears:
    """One connection that hears what passes and when."""

    nc: Nats
    next_attempt: Samples = field(default_factory=Samples)
    """From an outcome to the work that follows it, as the broker passes them on."""
    chunks: dict[str, asyncio.Queue[Chunk]] = field(default_factory=dict)
    """Of the requests, by id, that somebody wants to see them of."""
    first_chunk: dict[str, asyncio.Future[float]] = field(default_factory=dict)
    """When the first piece of a request was heard."""
    _ended: dict[str, float] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Ears"]:
        async with connect(url, name="bench ears") as nc:
            ears = cls(nc)
            for subject in ("llm.out.>", "llm.work.>", f"llm.chunk.{NAME}.>"):
                await nc.subscribe(subject, cb=ears._heard)
            await nc.flush()
            yield ears

    async def _heard(self, msg: Msg) -> None:
        now = time.monotonic()
        match parse(msg.subject):
            case OutcomeSubject(rid=rid):
                self._ended[rid] = now
            case WorkSubject(rid=rid) if rid in self._ended:
                self.next_attempt.ms.append((now - self._ended.pop(rid)) * 1000)
            case ChunkSubject(rid=rid):
                if (first := self.first_chunk.pop(rid, None)) is not None:
                    first.set_result(now)
                if rid in self.chunks:
                    self.chunks[rid].put_nowait(Chunk.decode(msg.data))
            case _:
                pass


@dataclass(slots=True)
class Bench:
    """What the measurements hold on to."""

    router: psutil.Process
    upstream: Upstream
    client: Client
    ears: Ears
    _asked: int = 0

    def request(self, model: str, *, stream: bool = False) -> LlmRequest:
        self._asked += 1
        rid = f"f{self._asked}"
        if stream:
            self.ears.first_chunk[rid] = asyncio.get_running_loop().create_future()
        return LlmRequest(request_id=rid, prompt=TEXT, model=model, stream=stream)

    async def ask(self, model: str) -> tuple[float, Reply]:
        """Milliseconds to the answer, and the answer."""
        request = self.request(model)
        begun = time.monotonic()
        reply = await self.client.ask(request)
        return (time.monotonic() - begun) * 1000, reply

    async def until(self, model: str, *wanted: str) -> None:
        """Ask until the attempts of an answer are just these models: a breaker has opened, or closed."""
        async with asyncio.timeout(40):
            while tried((await self.ask(model))[1]) != wanted:
                await asyncio.sleep(0.05)


def tried(reply: Reply) -> tuple[str, ...]:
    return tuple(attempt.model for attempt in reply.attempts)


@asynccontextmanager
async def benched() -> AsyncIterator[Bench]:
    """Everything started and warm."""
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(upstream())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmbus-bench-")))
        url = (await stack.enter_async_context(broker(directory))).url
        router = await stack.enter_async_context(roles(url, policy(served)))
        client = await stack.enter_async_context(Client.connect(url, NAME))
        bench = Bench(router, served, client, await stack.enter_async_context(Ears.open(url)))
        for _ in range(200):
            await bench.ask("primary")
            await bench.ask("second")
        yield bench
