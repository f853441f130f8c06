"""What a fault costs: failover, silence, streams and cancellation, over the bus, with every role its own process.

    python -m tests.bench.failover [--json] [--quick]

The upstreams are a process too (`tests/bench/upstream.py`), nats-server syncs every message, and what is compared takes
turns within one run.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvloop
import yaml
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from adapters.bus import connect
from adapters.client import Client, RequestFailedError
from ops.broker import broker
from schemas.chunk import Chunk
from schemas.reply import Reply
from schemas.request import LlmRequest
from subjects import Cancel, parse
from subjects import Chunk as ChunkSubject
from subjects import Outcome as OutcomeSubject
from subjects import Work as WorkSubject
from tests.bench.bus import roles
from tests.bench.dialects import every_dialect
from tests.bench.load import BODY
from tests.bench.upstream import Mode, Upstream, upstream

NAME = "bench"
PROMPT = json.loads(BODY)["prompt"]
HEALTHY_EACH = 12
"""Healthy requests to one that meets a fault: retries may be a tenth of the traffic."""
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
MARKS = {
    "next_attempt_p99_ms": 50,
    "first_failover_p50_ms": 20,
    "first_failover_p99_ms": 1000,
    "later_failover_p50_ms": 2,
    "silent_ms": SILENCE_MS + 1000,
    "silent_calls": 1,
    "adapter_p50_ms": 1,
    "ttft_added_p50_ms": 6,
    "cancel_p99_ms": 300,
    "streams_broken": 0,
    "router_growth": 0.05,
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
    chunks: dict[str, list[Chunk]] = field(default_factory=dict)
    """By request id."""
    first_chunk: dict[str, asyncio.Future[float]] = field(default_factory=dict)
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
                    self.chunks[rid].append(Chunk.decode(msg.data))
            case _:
                pass


@dataclass(slots=True)
class Bench:
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
        return LlmRequest(request_id=rid, prompt=PROMPT, model=model, stream=stream)

    async def ask(self, model: str) -> tuple[float, Reply]:
        """Milliseconds to the answer, and the answer."""
        request = self.request(model)
        begun = time.monotonic()
        reply = await self.client.ask(request)
        return (time.monotonic() - begun) * 1000, reply

    async def until(self, model: str, *tried: str) -> None:
        """Ask until the attempts of an answer are just these models: a breaker has opened, or closed."""
        async with asyncio.timeout(40):
            while _tried((await self.ask(model))[1]) != tried:
                await asyncio.sleep(0.05)


def _tried(reply: Reply) -> tuple[str, ...]:
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


async def first_failover(bench: Bench, mode: Mode, faults: int) -> tuple[Samples, float]:
    """What a request costs that is the first to meet the fault, over the healthy median; and its calls on average.

    The primary is well again after each, which sets its breaker back.
    """
    healthy, failed, calls = Samples(), Samples(), 0
    while len(failed.ms) < faults:
        for _ in range(HEALTHY_EACH):
            ms, reply = await bench.ask("primary")
            if _tried(reply) != ("primary",):  # the node's probe met the fault: the model is passed over until the next
                await bench.until("primary", "primary")
                continue
            healthy.ms.append(ms)
        await bench.upstream.primary(mode)
        ms, reply = await bench.ask("primary")
        await bench.upstream.primary("ok")
        if "primary" in _tried(reply):
            failed.ms.append(ms)
            calls += len(reply.attempts)
    median = healthy.at(0.5)
    return Samples([ms - median for ms in failed.ms]), calls / faults


async def later_failover(bench: Bench, mode: Mode, requests: int) -> Samples:
    """What requests cost while the breaker is open, over the median of those that ask for the fallback itself."""
    healthy, failed = Samples(), Samples()
    await bench.upstream.primary(mode)
    await bench.until("primary", "second")
    for _ in range(requests):
        healthy.ms.append((await bench.ask("second"))[0])
        failed.ms.append((await bench.ask("primary"))[0])
    await bench.upstream.primary("ok")
    await bench.until("primary", "primary")
    median = healthy.at(0.5)
    return Samples([ms - median for ms in failed.ms])


async def silence(bench: Bench) -> dict[str, float]:
    """How long the one request takes that meets a silent primary, how long the next, and the calls of it by then."""
    first, later = Samples(), Samples()
    for model in SILENT:
        first.ms.append((await bench.ask(model))[0])
        later.ms.append((await bench.ask(model))[0])
    calls = await bench.upstream.calls("silent")
    return {"silent_ms": first.at(1), "silent_next_ms": later.at(1), "silent_calls": calls / len(SILENT)}


async def first_token(bench: Bench, requests: int) -> tuple[Samples, Samples]:
    """Time to the first piece over the bus, and straight from the same upstream."""
    over, straight = Samples(), Samples()
    url = f"{bench.upstream.url}/{PATHS['first_token']}/chat/completions"
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    async with httpx.AsyncClient(trust_env=False) as client:
        for at in range(requests + 20):
            begun = time.monotonic()
            async with client.stream("POST", url, json=body) as response:
                pieces = response.aiter_raw()
                await anext(pieces)
                direct_ms = (time.monotonic() - begun) * 1000
                async for _ in pieces:
                    pass
            request = bench.request("first_token", stream=True)
            first = bench.ears.first_chunk[str(request.request_id)]
            begun = time.monotonic()
            await bench.client.ask(request)
            if at >= 20:
                straight.ms.append(direct_ms)
                over.ms.append((await first - begun) * 1000)
    return over, straight


async def streams(bench: Bench, rounds: int) -> dict[str, float]:
    """Many streams at once, of which none may lack a piece or have two in the wrong order; and the router's memory."""
    broken, took, rss = 0, Samples(), []

    async def one() -> bool:
        request = bench.request("fifty", stream=True)
        rid = str(request.request_id)
        heard = bench.ears.chunks[rid] = []
        reply = await bench.client.ask(request)
        await bench.ears.nc.flush()
        del bench.ears.chunks[rid]
        whole = "".join(chunk.text for chunk in heard) == (reply.message.content if reply.message else None)
        return whole and [chunk.n for chunk in heard] == list(range(STREAM_TOKENS))

    for _ in range(rounds + 1):
        begun = time.monotonic()
        broken += (await asyncio.gather(*(one() for _ in range(STREAMS)))).count(False)
        took.ms.append((time.monotonic() - begun) * 1000)
        rss.append(bench.router.memory_info().rss / 1e6)
    # The first round warms up.
    return {
        "streams_broken": broken, "streams_ms": took.at(0.5), "router_rss_mb": rss[-1],
        "router_growth": (rss[-1] - rss[1]) / rss[1],
    }  # fmt: skip


async def cancellation(bench: Bench, requests: int) -> Samples:
    """From the cancellation's publication to the upstream's sight of the closed connection."""
    took = Samples()

    async def cancelled(answer: Awaitable[Any]) -> None:
        try:
            await answer
        except RequestFailedError as error:
            if error.error.type != "cancelled":
                raise

    for _ in range(requests):
        request = bench.request("endless", stream=True)
        rid = str(request.request_id)
        first = bench.ears.first_chunk[rid]
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(cancelled(bench.client.ask(request)))
            await first
            begun = time.monotonic()
            await bench.ears.nc.publish(str(Cancel(NAME, rid)))
            took.ms.append((await bench.upstream.gone.get() - begun) * 1000)
    return took


async def measure(*, quick: bool) -> dict[str, Any]:
    faults, later, tokens, cancels, rounds, calls = (20, 60, 60, 30, 2, 200) if quick else (150, 300, 300, 200, 6, 2000)
    adapters = await every_dialect(calls)
    async with benched() as bench:
        first = {mode: await first_failover(bench, mode, faults) for mode in ("500", "refuse")}
        gaps = Samples([1000 * gap_s for gap_s in bench.upstream.gaps_s])
        next_attempt = bench.ears.next_attempt
        after = {mode: await later_failover(bench, mode, later) for mode in ("500", "refuse")}
        over, straight = await first_token(bench, tokens)
        cancel = await cancellation(bench, cancels)
        figures = {
            "next_attempt_p99_ms": next_attempt.at(0.99),
            "first_failover_p50_ms": max(samples.at(0.5) for samples, _ in first.values()),
            "later_failover_p50_ms": max(samples.at(0.5) for samples in after.values()),
            "adapter_p50_ms": max(adapters.values()),
            "ttft_added_p50_ms": over.at(0.5) - straight.at(0.5),
            "cancel_p99_ms": cancel.at(0.99),
            "next_attempt_p50_ms": next_attempt.at(0.5),
            "next_call_p99_ms": gaps.at(0.99),
            "next_call_p50_ms": gaps.at(0.5),
            "first_failover_p99_ms": max(samples.at(0.99) for samples, _ in first.values()),
            "first_failover_calls": max(each for _, each in first.values()),
            "later_failover_p99_ms": max(samples.at(0.99) for samples in after.values()),
            "ttft_p50_ms": over.at(0.5),
            "ttft_direct_p50_ms": straight.at(0.5),
            "cancel_p50_ms": cancel.at(0.5),
            **await silence(bench),
            **await streams(bench, rounds),
        }
    return {name: round(value, 3) for name, value in figures.items()} | {"adapters_p50_ms": adapters}


def show(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            continue
        mark = MARKS.get(name)
        told = "" if mark is None else f"   {'met' if value <= mark else 'MISSED'}: at most {mark}"
        print(f"  {name:24}{value:>10.3f}{told}")
    print("  adapters, ms: " + ", ".join(f"{dialect} {ms}" for dialect, ms in figures["adapters_p50_ms"].items()))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer samples: a first look")
    asked = parser.parse_args()
    figures = await measure(quick=asked.quick)
    print("failover, silence, streams, cancellation; sync_interval: always")
    show(figures)
    if asked.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    uvloop.run(main())
