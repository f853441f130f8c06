"""What the HTTP edge costs, beside LiteLLM's proxy and Portkey's gateway in the same run, before the same upstream.

    python -m tests.bench.edge [--json] [--quick] [--only llmbus,Portkey]

One process of each kind; ours are four, nats-server syncing every message (and a second stack with the server's own
default). What is added is measured over the upstream itself, asked by the same client in turns: p50 is median less
median, p99 the 99th percentile less the direct median. A peer that cannot be installed is left out, and its known
figures are printed as such.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench import gateways
from tests.bench.edge_load import Run, at, load
from tests.bench.gateways import Gateway, NotToBeHadError

MANY: Final = 32
MAIN: Final = "plain, 0 ms, 32 in flight"


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request, one in flight or many."""

    model: str
    stream: bool
    in_flight: int
    requests: int
    """Of each round."""
    slow_requests: int
    """The same for LiteLLM."""


CASES: Final = {
    "plain, 0 ms": Case("fast", False, 1, 200, 60),
    "plain, 50 ms": Case("slow", False, 1, 30, 15),
    "stream, 0 ms": Case("fast", True, 1, 100, 30),
    "stream, 50 ms": Case("spoken", True, 1, 15, 10),
    MAIN: Case("fast", False, MANY, 1000, 150),
    "plain, 50 ms, 32 in flight": Case("slow", False, MANY, 600, 150),
    "stream, 0 ms, 32 in flight": Case("fast", True, MANY, 400, 100),
}
KNOWN: Final = {
    "LiteLLM": {"added_p50_ms": 23, "added_p99_ms": 35, "rps_32": 46, "ttft": 25, "rss_mb": 406, "start_s": 13.7},
    "Portkey": {"added_p50_ms": 2.4, "added_p99_ms": 11.5, "rps_32": 400, "ttft": 30, "rss_mb": 214, "start_s": 0.7},
}
"""Measured before, on two shared cores."""
MARKS: Final = {"added_p50_ms": 6, "added_p99_ms": 15, "ttft_added_p50_ms": 5, "rss_mb": 200, "start_s": 3}
MEMORY_REQUESTS: Final = 20_000
OTHERS_MEMORY_REQUESTS: Final = 2_000


@dataclass(slots=True)
class Found:
    """Of one gateway."""

    gateway: Gateway
    runs: dict[str, Run] = field(default_factory=dict)
    idle_mb: float = 0.0
    loaded_mb: float = 0.0
    shared_once_mb: float = 0.0
    mb: dict[str, float] = field(default_factory=dict)
    """The same of each process."""
    cpu_us: dict[str, float] = field(default_factory=dict)
    """Of each process, for one plain request of many in flight."""


@asynccontextmanager
async def upstream() -> AsyncIterator[int]:
    command = (sys.executable, "-m", "tests.bench.edge_upstream")
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield int(await child.stdout.readline())
    finally:
        child.stdin.close()
        await child.wait()


async def started(
    stack: AsyncExitStack, name: str, opened: Callable[[], AbstractAsyncContextManager[Gateway]]
) -> Gateway | None:
    try:
        gateway = await stack.enter_async_context(opened())
    except NotToBeHadError as why:
        print(f"{name} is left out: {why}")
        return None
    if gateway.start_s is not None:
        print(f"{name}: first answer after {gateway.start_s:.2f} s", flush=True)
    return gateway


async def warm(found: Sequence[Found]) -> None:
    for each in found:
        for case in CASES.values():
            target = each.gateway.targets[case.model]
            await load(target, case.model, stream=case.stream, requests=40, in_flight=case.in_flight)
        each.idle_mb = each.gateway.rss_mb()


async def measure(found: Sequence[Found], rounds: int) -> None:
    for _ in range(rounds):
        for name, case in CASES.items():
            for each in found:
                requests = case.slow_requests if each.gateway.name == "LiteLLM" else case.requests
                run = await load(
                    each.gateway.targets[case.model], case.model, stream=case.stream, requests=requests,
                    in_flight=case.in_flight,
                )  # fmt: skip
                each.runs.setdefault(name, Run()).add(run)


async def weigh(found: Found, requests: int) -> None:
    """Memory after so many requests, and the CPU of one."""
    before = found.gateway.cpu_s()
    run = await load(found.gateway.targets["fast"], "fast", stream=False, requests=requests, in_flight=MANY)
    found.runs["memory"] = run
    spent = found.gateway.cpu_s()
    found.cpu_us = {name: (spent[name] - before[name]) / requests * 1e6 for name in spent}
    found.mb = {name: each.memory_info().rss / 1e6 for name, each in found.gateway.processes.items()}
    found.loaded_mb, found.shared_once_mb = found.gateway.rss_mb(), found.gateway.pss_mb()


def figures(found: Found, direct: Found) -> dict[str, float]:
    """Of the two delays the worse."""
    added = [
        [at(found.runs[name].whole_ms, share) - at(direct.runs[name].whole_ms, 0.5) for share in (0.5, 0.99)]
        for name in ("plain, 0 ms", "plain, 50 ms")
    ]
    first = [
        at(found.runs[name].first_ms, 0.5) - at(direct.runs[name].first_ms, 0.5)
        for name in ("stream, 0 ms", "stream, 50 ms")
    ]
    return {
        "added_p50_ms": max(p50 for p50, _ in added),
        "added_p99_ms": max(p99 for _, p99 in added),
        "rps_32": found.runs[MAIN].per_s,
        "ttft_added_p50_ms": max(first),
        "rss_mb": found.loaded_mb,
        "start_s": found.gateway.start_s or 0.0,
    }


def show(found: Sequence[Found], direct: Found, known: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(title="The edge beside its peers; milliseconds over the upstream itself unless said otherwise")
    table.add_column("")
    for each in found:
        table.add_column(each.gateway.name, justify="right")
    for name in known:
        table.add_column(f"{name}, known", justify="right")
    blank = [""] * len(known)

    def row(title: str, told: Callable[[Found], str], known_as: str | None = None) -> None:
        old = [f"{known[name][known_as]:g}" for name in known] if known_as else blank
        table.add_row(title, *(told(each) for each in found), *old)

    def over(name: str, part: str, share: float) -> Callable[[Found], str]:
        base = at(getattr(direct.runs[name], part), 0.5)
        return lambda each: f"{at(getattr(each.runs[name], part), share) - base:.2f}"

    def rate(name: str) -> Callable[[Found], str]:
        return lambda each: f"{each.runs[name].per_s:.0f}"

    for name, case in CASES.items():
        if case.in_flight > 1:
            row(f"{name}: requests/s", rate(name), "rps_32" if name == MAIN else None)
            continue
        if case.stream:
            row(f"{name}: first token, p50", over(name, "first_ms", 0.5), "ttft" if case.model == "fast" else None)
        row(f"{name}: p50", over(name, "whole_ms", 0.5), "added_p50_ms" if name == "plain, 0 ms" else None)
        row(f"{name}: p99", over(name, "whole_ms", 0.99), "added_p99_ms" if name == "plain, 0 ms" else None)
    row("memory, idle, MB", lambda each: f"{each.idle_mb:.0f}" if each.idle_mb else "")
    row("memory, loaded, MB", lambda each: f"{each.loaded_mb:.0f}" if each.loaded_mb else "", "rss_mb")
    row("the same, shared pages once", lambda each: f"{each.shared_once_mb:.0f}" if each.shared_once_mb else "")
    row("CPU, us a plain request", lambda each: f"{sum(each.cpu_us.values()):.0f}" if each.cpu_us else "")
    row("start to first answer, s", lambda each: f"{each.gateway.start_s:.2f}" if each.gateway.start_s else "",
        "start_s")  # fmt: skip
    Console(width=150).print(table)
    for each in found:
        if len(each.cpu_us) > 1:
            told = ", ".join(f"{name} {us:.0f} us {each.mb[name]:.0f} MB" for name, us in each.cpu_us.items())
            print(f"{each.gateway.name}: {told}")


def judge(figures: Mapping[str, float], litellm_rps: float) -> None:
    for name, mark in MARKS.items():
        held = figures[name] <= mark
        print(f"  {name:20}{figures[name]:>9.2f}   {'met' if held else 'MISSED'}: at most {mark}")
    times = figures["rps_32"] / litellm_rps
    told = f"{'met' if times >= 10 else 'MISSED'}: {times:.1f} times LiteLLM's, at least 10"
    print(f"  {'rps_32':20}{figures['rps_32']:>9.0f}   {told}")


async def bench(*, quick: bool, only: Sequence[str]) -> dict[str, Any]:
    rounds, requests, others_requests = (1, 2_000, 300) if quick else (3, MEMORY_REQUESTS, OTHERS_MEMORY_REQUESTS)
    async with upstream() as port, AsyncExitStack() as stack:
        opened: dict[str, Callable[[], AbstractAsyncContextManager[Gateway]]] = {
            "direct": lambda: gateways.direct(port),
            "llmbus": lambda: gateways.llmbus(port),
            "llmbus, sync 2m": lambda: gateways.llmbus(port, sync_interval="2m"),
            "LiteLLM": lambda: gateways.litellm(port),
            "Portkey": lambda: gateways.portkey(port),
        }
        names = [name for name in opened if name in ("direct", "llmbus") or not only or name in only]
        found = {
            name: Found(gateway) for name in names if (gateway := await started(stack, name, opened[name])) is not None
        }
        await warm(list(found.values()))
        for name, each in found.items():
            if name != "direct":
                await weigh(each, requests if name == "llmbus" else others_requests)
        await measure(list(found.values()), rounds)
        for each in found.values():
            failed = [words for run in each.runs.values() for words in run.failed]
            if failed:
                raise SystemExit(f"{each.gateway.name} failed {len(failed)} requests, the first: {failed[0]}")
        direct = found["direct"]
        missing = {name: known for name, known in KNOWN.items() if name not in found}
        show([each for name, each in found.items() if name != "direct"], direct, missing)
        ours = figures(found["llmbus"], direct)
        litellm_rps = figures(found["LiteLLM"], direct)["rps_32"] if "LiteLLM" in found else KNOWN["LiteLLM"]["rps_32"]
        judge(ours, litellm_rps)
        return {**{name: round(value, 3) for name, value in ours.items()}, "litellm_rps_32": round(litellm_rps, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--quick", action="store_true", help="one round and fewer requests: a first look")
    parser.add_argument("--only", default="", help="beside ours only these, by name, separated by commas")
    asked = parser.parse_args()
    result = uvloop.run(bench(quick=asked.quick, only=[each for each in asked.only.split(",") if each]))
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
