"""What a fault costs: failover, silence, streams and cancellation, over the bus, with every role its own process.

    python -m tests.bench.failover [--json] [--quick]

The upstreams are a process too (`tests/bench/upstream.py`), nats-server syncs every message, and what is compared takes
turns within one run.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable
from typing import Any

import httpx
import uvloop

from adapters.client import RequestFailedError
from subjects import Cancel
from tests.bench.dialects import every_dialect
from tests.bench.load import TEXT
from tests.bench.stage import (
    NAME,
    PATHS,
    SILENCE_MS,
    SILENT,
    STREAM_TOKENS,
    STREAMS,
    Bench,
    Samples,
    benched,
    tried,
)
from tests.bench.upstream import Mode

HEALTHY_EACH = 12
"""Healthy requests to one that meets a fault: retries may be a tenth of the traffic."""
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


async def first_failover(bench: Bench, mode: Mode, faults: int) -> tuple[Samples, float]:
    """What a request costs that is the first to meet the fault, over the healthy median; and its calls on average.

    The primary is well again after each, which sets its breaker back.
    """
    healthy, failed, calls = Samples(), Samples(), 0
    while len(failed.ms) < faults:
        for _ in range(HEALTHY_EACH):
            ms, reply = await bench.ask("primary")
            if tried(reply) != ("primary",):  # the node's probe met the fault: the model is passed over until the next
                await bench.until("primary", "primary")
                continue
            healthy.ms.append(ms)
        await bench.upstream.primary(mode)
        ms, reply = await bench.ask("primary")
        await bench.upstream.primary("ok")
        if "primary" in tried(reply):
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
    body = {"model": "m", "messages": [{"role": "user", "content": TEXT}], "stream": True}
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
        heard = bench.ears.chunks[rid] = asyncio.Queue()
        reply = await bench.client.ask(request)
        try:
            async with asyncio.timeout(5):
                chunks = [await heard.get() for _ in range(STREAM_TOKENS)]
        except TimeoutError:
            return False
        in_order = heard.empty() and [chunk.n for chunk in chunks] == list(range(STREAM_TOKENS))
        return in_order and reply.message is not None and reply.message.content == "".join(c.text for c in chunks)

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
