"""The bench of swaps measures what it says, and its picture is a picture."""

import random
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from router.core.residency import BOUNDS_MS, GB
from router.core.schedule import schedule
from tests.bench import swap
from tests.bench.swap_figures import Figures, figures
from tests.bench.swap_svg import drawing
from tests.bench.swap_traces import MODELS, TOTAL_BYTES, Trace, agents, in_turn, traces
from tests.support.schedulers import fifo, lru, ollama
from tests.support.virtual_node import Ask, VirtualNode


def test_a_scheduler_that_knows_no_bound_is_found_out() -> None:
    """LRU serves the coder as long as it is asked; ours turns to the architect in time."""
    flood = [Ask(at * 5_000, "coder", 300) for at in range(60)]
    asks = [*flood, Ask(20_000, "architect", 100)]
    assert figures([VirtualNode(MODELS, TOTAL_BYTES, scheduler=lru).run(asks)]).violations == 1
    assert figures([VirtualNode(MODELS, TOTAL_BYTES, scheduler=schedule).run(asks)]).violations == 0


def test_work_that_nobody_could_have_done_sooner_violates_nothing() -> None:
    """One model, more than it can do: everybody waits, for those before them only."""
    found = figures([VirtualNode(MODELS, TOTAL_BYTES).run([Ask(0, "coder", 300) for _ in range(60)])])
    assert found.beyond > 40
    assert found.violations == 0


def test_figures_of_a_run_by_hand() -> None:
    """FIFO: coder 9.5 s, 10 s of answer, out in 0.5 s, architect 26 s and 8 s, and back again."""
    asks = [Ask(0, "coder", 300), Ask(1_000, "architect", 200, "batch"), Ask(2_000, "coder", 300, timeout_ms=50_000)]
    found = figures([VirtualNode(MODELS, TOTAL_BYTES, scheduler=fifo).run(asks)])
    assert found == Figures(
        requests=3, loads=3, end_ms=74_000,
        p50_ms={"critical": 0, "high": 0, "normal": 62_000, "batch": 45_000},
        p95_ms={"critical": 0, "high": 0, "normal": 62_000, "batch": 45_000},
        interactive_p95_ms=62_000, longest_ms=62_000, misses=1, beyond=0, violations=0,
    )  # fmt: skip


def test_ollama_unloads_the_idle_with_the_first_name_though_it_was_used_last() -> None:
    asks = [Ask(0, "reviewer", 40), Ask(20_000, "coder", 30), Ask(60_000, "third", 30)]
    specs = [*MODELS, replace(MODELS[1], name="third", weights_bytes=40 * GB)]
    went = {
        scheduler.__name__: VirtualNode(specs, TOTAL_BYTES, scheduler=scheduler).run(asks).orders
        for scheduler in (ollama, lru)
    }
    first = {name: next(o.unloads[0].model for _, o in orders if o.unloads) for name, orders in went.items()}
    assert first == {"ollama": "coder", "lru": "reviewer"}


def test_the_summary_takes_the_worst_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "optimum_gaps", lambda number: {"last": 0.05, "mean": 0.1})
    monkeypatch.setattr(swap, "decision_ms", lambda decisions: 0.5)
    runs = {number: swap.compare(Trace("", [list(in_turn(number, 2_000))])) for number in (20, 60)}
    found = swap.summary({str(number): each for number, each in runs.items()}, {"20", "60"}, 7.5, quick=True)
    assert found["loads_ratio"] == min(each["FIFO"].loads / each["llmbus"].loads for each in runs.values())
    assert (found["optimum_gap"], found["decision_ms"], found["real_loads_ratio"]) == (0.1, 0.5, 7.5)
    assert set(found) == swap.MARKS.keys()


def test_every_trace_asks_for_models_the_node_has_within_the_bounds_there_are() -> None:
    names = {spec.name for spec in MODELS}
    for trace in traces(quick=True):
        for draw in trace.draws:
            assert draw
            assert {ask.model for ask in draw} <= names
            assert {ask.urgency for ask in draw} <= BOUNDS_MS.keys()


def test_the_picture_is_xml_and_shows_every_scheduler_and_load() -> None:
    asks = list(agents(2, random.Random(1)))
    runs = {name: VirtualNode(MODELS, TOTAL_BYTES, scheduler=each).run(asks) for name, each in swap.SCHEDULERS.items()}
    picture = ElementTree.fromstring(drawing("two < three", runs))  # noqa: S314 - our own text
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "two < three" in words
    assert set(swap.SCHEDULERS) <= set(words)
    loads = sum(1 for run in runs.values() for span in run.spans if span.what == "loading" and span.from_ms < 1_800_000)
    triangles = [e for e in picture.iter("{http://www.w3.org/2000/svg}path") if e.get("fill") == "#c0392b"]
    assert len(triangles) == loads + 1  # and the one of the legend
