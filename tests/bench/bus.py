"""What llmbus costs over a bare pattern of the same hops, in one run on one server.

    python -m tests.bench.bus [--json] [--quick]

Both patterns run with every role in its own process, take turns, and are measured by the same client. Printed are the
ratios llmbus / bare for latency at one in flight and throughput at 256, for both `sync_interval` settings; the router's
CPU and memory; and the time from `llmbus up` to the first routed request. The object that ends the `--json` output
speaks of the server's default sync interval; `sync_always` holds the same for ours.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
import psutil
import uvloop

from adapters.bus import connect, provision
from adapters.client import Client, RequestFailedError
from ops.broker import broker
from ops.policy_store import PolicyStore
from router.errors import BusError
from subjects.streams import NODES_BUCKET, POLICY_BUCKET
from tests.bench import bare
from tests.bench.load import Load

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
ROUNDS = 5
ONE_IN_FLIGHT = 400
MANY = 4_000
IN_FLIGHT = 256
MEMORY_REQUESTS = 20_000
MEMORY_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one sync setting. Times in ms, CPU in us per request of the router, memory in MB."""

    p50_ratio: float
    p99_ratio: float
    throughput_ratio: float
    requests_per_s: float
    router_cpu_us: float
    router_rss_mb: float
    rss_slope: float
    p50_ms: float
    p99_ms: float
    bare_p50_ms: float
    bare_p99_ms: float
    bare_requests_per_s: float


@contextmanager
def process(*command: str) -> Iterator[psutil.Process]:
    """A role in its own process; ended with the context."""
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(20)


@asynccontextmanager
async def roles(url: str, policy: str) -> AsyncIterator[psutil.Process]:
    """Router and the node `bench` as users start them; the router's process."""
    async with connect(url, name="bench") as nc:
        await provision(nc)
        store = PolicyStore(await nc.jetstream().key_value(POLICY_BUCKET))
        await store.apply(policy, "policy.yaml")
        beat = await nc.subscribe(f"$KV.{NODES_BUCKET}.bench", max_msgs=1)
        await nc.flush()
        with (
            process(str(BIN / "llmbus"), "node", "bench", "--nats-url", url),
            process(str(BIN / "llmbus"), "router", "--nats-url", url) as router,
        ):
            await beat.next_msg(20)
            yield router


@asynccontextmanager
async def llmbus(url: str) -> AsyncIterator[tuple[Load, psutil.Process]]:
    """The roles, and a client of them."""
    async with (
        roles(url, (HERE / "policy.yaml").read_text()) as router,
        Load.open(url, "llm.req.code", "llm.res.bench.*") as load,
    ):
        yield load, router


@asynccontextmanager
async def bare_pattern(url: str) -> AsyncIterator[Load]:
    nc = await nats.connect(url)
    await bare.provision(nc)
    await nc.close()
    with (
        process(sys.executable, "-m", "tests.bench.bare", "router", url),
        process(sys.executable, "-m", "tests.bench.bare", "executor", url),
    ):
        async with Load.open(url, "bare.req.code", "bare.res.bench.*") as load:
            yield load


async def measure(sync_interval: str, rounds: int, memory_requests: int) -> Figures:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmbus-bench-")))
        server = await stack.enter_async_context(broker(directory, sync_interval=sync_interval))
        plain = await stack.enter_async_context(bare_pattern(server.url))
        ours, router = await stack.enter_async_context(llmbus(server.url))
        for load in (plain, ours):
            await load.run(500, 16)
        singles, manies = [], []
        for _ in range(rounds):
            singles.append((await ours.run(ONE_IN_FLIGHT, 1), await plain.run(ONE_IN_FLIGHT, 1)))
            manies.append((await ours.run(MANY, IN_FLIGHT), await plain.run(MANY, IN_FLIGHT)))
        if failed := sum(run.failed for pair in (*singles, *manies) for run in pair):
            raise SystemExit(f"{failed} requests were not answered ok: the figures would mean nothing")
        samples, cpu_us = await memory_and_cpu(ours, router, memory_requests)
    half = samples[len(samples) // 2 :]
    return Figures(
        p50_ratio=median(a.percentile(0.5) / b.percentile(0.5) for a, b in singles),
        p99_ratio=median(a.percentile(0.99) / b.percentile(0.99) for a, b in singles),
        throughput_ratio=median(a.requests_per_s / b.requests_per_s for a, b in manies),
        requests_per_s=median(a.requests_per_s for a, _ in manies),
        router_cpu_us=cpu_us,
        router_rss_mb=samples[-1],
        rss_slope=(half[-1] - half[0]) / half[0],
        p50_ms=median(a.percentile(0.5) for a, _ in singles),
        p99_ms=median(a.percentile(0.99) for a, _ in singles),
        bare_p50_ms=median(b.percentile(0.5) for _, b in singles),
        bare_p99_ms=median(b.percentile(0.99) for _, b in singles),
        bare_requests_per_s=median(b.requests_per_s for _, b in manies),
    )


async def memory_and_cpu(load: Load, router: psutil.Process, requests: int) -> tuple[list[float], float]:
    """Resident memory after each twentieth of `requests`, and the router's CPU per request."""
    samples = []
    before = router.cpu_times()
    for _ in range(MEMORY_SAMPLES):
        await load.run(requests // MEMORY_SAMPLES, 64)
        samples.append(router.memory_info().rss / 1e6)
    after = router.cpu_times()
    spent_s = after.user - before.user + after.system - before.system
    return samples, spent_s / requests * 1e6


async def time_to_first_answer() -> float:
    """Seconds from the command `llmbus up` to the answer of a request that was asked as soon as it could be."""
    with tempfile.TemporaryDirectory(prefix="llmbus-start-") as directory:
        port = _free_port()
        begun = time.perf_counter()
        with process(str(BIN / "llmbus"), "up", "--store", directory, "--port", str(port), "--http-port", "0"):
            while True:
                try:
                    async with Client.connect(f"nats://127.0.0.1:{port}", "bench", wait_s=0.2) as client:
                        await client.ask("first", capability="code")
                        return time.perf_counter() - begun
                except (BusError, RequestFailedError):
                    await asyncio.sleep(0.02)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def median(values: Iterator[float]) -> float:
    return statistics.median(values)


def show(title: str, figures: Figures) -> None:
    print(f"\n{title}")
    print(f"  one in flight   p50 {figures.p50_ms:.2f} ms, bare {figures.bare_p50_ms:.2f}: x{figures.p50_ratio:.2f}")
    print(f"                  p99 {figures.p99_ms:.2f} ms, bare {figures.bare_p99_ms:.2f}: x{figures.p99_ratio:.2f}")
    print(
        f"  {IN_FLIGHT} in flight   {figures.requests_per_s:.0f}/s, bare {figures.bare_requests_per_s:.0f}/s:"
        f" x{figures.throughput_ratio:.2f}"
    )
    print(f"  router          {figures.router_cpu_us:.0f} us CPU a request, {figures.router_rss_mb:.1f} MB resident,")
    print(f"                  growing {figures.rss_slope:+.2%} over the second half")


def rounded(figures: Figures) -> dict[str, float]:
    return {name: round(getattr(figures, name), 4) for name in Figures.__slots__}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a first look")
    asked = parser.parse_args()
    rounds, memory_requests = (2, 4_000) if asked.quick else (ROUNDS, MEMORY_REQUESTS)
    start_s = min([await time_to_first_answer() for _ in range(3)])
    print(f"llmbus up to the first answer: {start_s:.2f} s")
    default = await measure("2m", rounds, memory_requests)
    show("sync_interval: the server's default", default)
    always = await measure("always", rounds, memory_requests)
    show("sync_interval: always", always)
    if asked.json:
        print(json.dumps({**rounded(default), "start_s": round(start_s, 3), "sync_always": rounded(always)}))


if __name__ == "__main__":
    uvloop.run(main())
