"""How often models change places in memory, and what that costs whom: the real scheduler on a virtual clock.

    python -m tests.bench.swap [--json] [--quick] [--svg PATH]

Every trace is played to four schedulers on the same virtual node: ours, first come first served, Ollama's own eviction,
and LRU with collation. Loads take 5 s for every 10 GB, unloading half a second; models beside each other do not slow
each other down. `optimum_gap` is against an exact search over small traces, by the completion time of the whole and by
the mean time to an answer, the worse of the two; it loads no model before somebody asked for it, but knows all that
will be asked. `real_loads_ratio` is counted on a real llama-server (LLAMA_SERVER, or the one on the PATH) that has room
for one of two models of 900 MB, with `--quick` of 4 MB; without one it is null.
"""

import argparse
import asyncio
import json
import logging
import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from router.core.residency import GB, ModelSpec, NodeState
from router.core.schedule import schedule
from router.core.waiting import Job
from subjects.grammar import URGENCIES
from tests.bench import swap_real
from tests.bench.swap_figures import Figures, figures, percentile
from tests.bench.swap_svg import drawing
from tests.bench.swap_traces import MODELS, TOTAL_BYTES, Trace, small, traces
from tests.support.llama_server import NOT_HERE, binary
from tests.support.optimum import Goal, Optimum
from tests.support.schedulers import fifo, lru, ollama
from tests.support.virtual_node import Ask, Run, Scheduler, VirtualNode

SCHEDULERS: Mapping[str, Scheduler] = {"llmbus": schedule, "FIFO": fifo, "Ollama": ollama, "LRU": lru}
QUEUED = 10_000
MARKS: Mapping[str, tuple[str, float]] = {
    "loads_ratio": (">=", 5), "throughput_ratio": (">=", 3), "bound_violations": ("<=", 0),
    "interactive_p95_ratio": ("<=", 1), "optimum_gap": ("<=", 0.15), "decision_ms": ("<=", 3),
    "real_loads_ratio": (">=", 5),
}  # fmt: skip
ABOUT: Mapping[str, str] = {
    "loads_ratio": "loads of FIFO / ours, A and B in turn",
    "throughput_ratio": "throughput of ours / FIFO, A and B in turn",
    "bound_violations": "kept beyond bound + one load for what could wait",
    "interactive_p95_ratio": "p95 wait of what is not batch, ours / FIFO",
    "optimum_gap": "over the optimum, mean of small traces",
    "decision_ms": f"a decision with {QUEUED:,} queued, p99",
    "real_loads_ratio": "loads in order / ours, a real llama-server",
}


def play(asks: list[Ask], scheduler: Scheduler) -> Run:
    return VirtualNode(MODELS, TOTAL_BYTES, scheduler=scheduler).run(asks)


def compare(trace: Trace) -> dict[str, Figures]:
    return {name: figures([play(list(asks), each) for asks in trace.draws]) for name, each in SCHEDULERS.items()}


def optimum_gaps(number: int) -> dict[Goal, float]:
    """How much more than the optimum ours takes, on average over small traces."""
    gaps: dict[Goal, list[float]] = {"last": [], "mean": []}
    for seed in range(number):
        asks = small(random.Random(seed))
        run = play(asks, schedule)
        costs: dict[Goal, int] = {
            "last": run.end_ms, "mean": sum(fate.end_ms - fate.job.arrived_ms for fate in run.served),
        }  # fmt: skip
        for goal, cost in costs.items():
            gaps[goal].append(cost / Optimum(MODELS, TOTAL_BYTES, asks, goal).best(cost) - 1)
    return {goal: statistics.mean(each) for goal, each in gaps.items()}


def decision_ms(decisions: int) -> float:
    """The 99th percentile of what a decision takes while 10,000 wait for twelve models, its bookkeeping included."""
    chance = random.Random(0)
    specs = [ModelSpec(f"m{at}", (5 + 4 * at) * GB, 30, slots=2) for at in range(12)]
    node = NodeState(specs, TOTAL_BYTES)
    for ticket in range(QUEUED):
        urgency, arrived_ms = chance.choice(URGENCIES), chance.randint(0, 3_600_000)
        node.arrived(Job(ticket, chance.choice(specs).name, urgency, arrived_ms, 10**12, 300), 3_600_000)
    now_ms, took_us = 3_600_000, []
    for ticket in range(QUEUED, QUEUED + decisions):
        now_ms += 1_000
        begun = time.perf_counter_ns()
        orders = schedule(node, now_ms)
        for unload in orders.unloads:
            node.unload_began(unload.model, unload.made_room_for)
            node.unloaded(unload.model)
        if orders.load:
            node.load_began(orders.load.model, now_ms)
            node.loaded(orders.load.model, now_ms)
        for start in orders.starts:
            node.started(start.ticket, now_ms)
        took_us.append((time.perf_counter_ns() - begun) // 1_000)
        for running in [running for model in node.models.values() for running in model.running]:
            node.finished(running, now_ms)
        urgency = chance.choice(URGENCIES)
        node.arrived(Job(ticket, chance.choice(specs).name, urgency, now_ms, 10**12, 300), now_ms)
    return percentile(sorted(took_us), 0.99) / 1000


def real_loads_ratio(console: Console, quick: bool) -> float | None:
    if binary() is None:
        console.print(f"real_loads_ratio is not measured: {NOT_HERE}")
        return None
    ours, theirs = asyncio.run(swap_real.compare(quick))
    size = "4 MB" if quick else "900 MB"
    console.print(
        f"A real llama-server, two models of {size}, room for one: {ours.loads} loads and {ours.seconds:.1f} s,"
        f" in order {theirs.loads} loads and {theirs.seconds:.1f} s"
    )
    return round(theirs.loads / ours.loads, 2)


def summary(
    results: Mapping[str, dict[str, Figures]], alternating: set[str], real: float | None, quick: bool
) -> dict[str, float | None]:
    """The worst over the traces."""
    pairs = {name: (each["llmbus"], each["FIFO"]) for name, each in results.items()}
    in_turn = [pair for name, pair in pairs.items() if name in alternating]
    return {
        "loads_ratio": round(min(theirs.loads / ours.loads for ours, theirs in in_turn), 2),
        "throughput_ratio": round(min(theirs.end_ms / ours.end_ms for ours, theirs in in_turn), 2),
        "bound_violations": max(ours.violations for ours, _ in pairs.values()),
        "interactive_p95_ratio": round(max(p95_ratio(ours, theirs) for ours, theirs in pairs.values()), 3),
        "optimum_gap": round(max(optimum_gaps(20 if quick else 200).values()), 3),
        "decision_ms": round(decision_ms(300 if quick else 3_000), 3),
        "real_loads_ratio": real,
    }


def p95_ratio(ours: Figures, theirs: Figures) -> float:
    return ours.interactive_p95_ms / max(1, theirs.interactive_p95_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer draws: a first look")
    parser.add_argument("--svg", type=Path, help="draw what is in memory when, for each scheduler")
    asked = parser.parse_args()
    console = Console(width=150)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    every = traces(asked.quick)
    results = {}
    for trace in every:
        results[trace.name] = compare(trace)
        within = "" if trace.counted else " of them, within the above"
        console.print(table(trace.name + within, results[trace.name]))
    counted = {trace.name: results[trace.name] for trace in every if trace.counted}
    real = real_loads_ratio(console, asked.quick)
    figured = summary(counted, {trace.name for trace in every if trace.alternating}, real, asked.quick)
    console.print(marks(figured))
    if asked.svg:
        shown = next(trace for trace in every if trace.name == "agents in turn, 6")
        runs = {name: play(list(shown.draws[0]), scheduler) for name, scheduler in SCHEDULERS.items()}
        asked.svg.write_text(
            drawing("Six agents that ask architect, coder and reviewer in turn", runs), encoding="utf-8"
        )
    if asked.json:
        print(json.dumps(figured))


def table(name: str, results: Mapping[str, Figures]) -> Table:
    table = Table(title=f"{name}: {results['llmbus'].requests} requests, waits p50/p95 in s", title_justify="left")
    for column in ("", "loads", "whole s", *URGENCIES, "p95 not batch", "longest", "missed", "beyond", "for nothing"):
        table.add_column(column, justify="left" if not column else "right")
    for scheduler, each in results.items():
        waits = (f"{each.p50_ms[urgency] / 1000:.0f}/{each.p95_ms[urgency] / 1000:.0f}" for urgency in URGENCIES)
        table.add_row(
            scheduler, str(each.loads), f"{each.end_ms / 1000:.0f}", *waits, f"{each.interactive_p95_ms / 1000:.1f}",
            f"{each.longest_ms / 1000:.0f}", str(each.misses), str(each.beyond), str(each.violations),
        )  # fmt: skip
    return table


def marks(figured: Mapping[str, float | None]) -> Table:
    table = Table(title="Marks", title_justify="left")
    for column in ("", "what", "mark", "found", ""):
        table.add_column(column)
    for name, (relation, mark) in MARKS.items():
        found = figured[name]
        if found is None:
            verdict = "not measured"
        else:
            verdict = "met" if (found >= mark if relation == ">=" else found <= mark) else "MISSED"
        table.add_row(name, ABOUT[name], f"{relation} {mark:g}", str(found), verdict)
    return table


if __name__ == "__main__":
    main()
