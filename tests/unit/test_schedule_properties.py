"""Whatever is asked of a node: nothing is lost, doubled or kept waiting for nothing.

The virtual node itself asserts on every order: never over memory, nothing unloaded that generates or is pinned, one
change at a time, no start without a free slot of a model in memory.
"""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.orders import Orders
from router.core.residency import BOUNDS_MS, GB, ModelSpec, NodeState, Rules
from router.core.schedule import schedule
from subjects.grammar import URGENCIES, Urgency
from tests.bench.swap_figures import figures
from tests.bench.swap_traces import MODELS, TOTAL_BYTES, in_turn, poisson, small
from tests.support.optimum import Goal, Optimum
from tests.support.schedulers import fifo, lru, ollama
from tests.support.virtual_node import FOREVER_MS, Ask, Run, VirtualNode

SPECS = st.lists(
    st.builds(
        ModelSpec,
        name=st.sampled_from(("a", "b", "c", "d", "e")),
        weights_bytes=st.integers(1, 70).map(lambda gb: gb * GB),
        tokens_per_s=st.sampled_from((5.0, 30.0, 90.0)),
        slots=st.integers(1, 3),
        pinned=st.sampled_from((False, False, False, True)),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda spec: spec.name,
)


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[ModelSpec], list[Ask]]:
    specs = draw(SPECS)
    asks = st.builds(
        Ask,
        at_ms=st.integers(0, 400_000),
        model=st.sampled_from([spec.name for spec in specs]),
        tokens=st.integers(1, 2_000),
        urgency=st.sampled_from(URGENCIES),
        timeout_ms=st.sampled_from((5_000, 60_000, 300_000, FOREVER_MS)),
        expected=st.none() | st.integers(1, 2_000),
    )
    return specs, draw(st.lists(asks, max_size=40))


@given(machines())
@settings(max_examples=150, deadline=None)
def test_every_request_is_served_once_or_refused_for_a_reason(machine: tuple[list[ModelSpec], list[Ask]]) -> None:
    specs, asks = machine
    run = VirtualNode(specs, TOTAL_BYTES).run(asks)
    assert len(run.fates) == len(asks)
    for fate in run.fates.values():
        if fate.refusal is None:
            assert fate.starts == 1
            assert fate.end_ms > fate.start_ms >= fate.job.arrived_ms
            assert fate.start_ms < fate.job.deadline_ms
        else:
            assert fate.starts == 0
            if fate.refusal.reason == "insufficient_memory":
                assert fate.refusal.needed_bytes > fate.refusal.had_bytes
            else:
                assert fate.job.deadline_ms < FOREVER_MS
    assert never_over_memory(run)


def never_over_memory(run: Run) -> bool:
    """At every moment what is in memory, coming or going leaves the headroom."""
    sizes = {spec.name: spec.weights_bytes for spec in run.specs}
    changes = sorted({span.from_ms for span in run.spans})
    held = (sum(sizes[span.model] for span in run.spans if span.from_ms <= at < span.to_ms) for at in changes)
    return all(each <= TOTAL_BYTES - run.rules.headroom_bytes for each in held)


def seen(node: NodeState) -> tuple[object, ...]:
    models = [(name, replace(model, running=dict(model.running))) for name, model in node.models.items()]
    return models, [job for name in node.models for job in node.queue.jobs(name)], node.free_bytes


@given(machines())
@settings(max_examples=40, deadline=None)
def test_the_same_state_gives_the_same_orders_and_is_left_as_it_was(
    machine: tuple[list[ModelSpec], list[Ask]],
) -> None:
    specs, asks = machine

    def twice(node: NodeState, now_ms: int) -> Orders:
        before = seen(node)
        orders = schedule(node, now_ms)
        assert schedule(node, now_ms) == orders
        assert seen(node) == before
        return orders

    checked = VirtualNode(specs, TOTAL_BYTES, scheduler=twice).run(asks)
    assert checked.orders == VirtualNode(specs, TOTAL_BYTES).run(asks).orders


@given(
    st.lists(
        st.builds(
            Ask,
            at_ms=st.integers(0, 900_000),
            model=st.sampled_from([spec.name for spec in MODELS]),
            tokens=st.integers(20, 900),
            urgency=st.sampled_from(URGENCIES),
        ),
        max_size=60,
    )
)
@settings(max_examples=150, deadline=None)
def test_nobody_is_kept_beyond_the_bound_for_what_could_wait(asks: list[Ask]) -> None:
    assert figures([VirtualNode(MODELS, TOTAL_BYTES).run(asks)]).violations == 0


@pytest.mark.parametrize("urgency", ["high", "normal", "batch"])
def test_a_lone_request_beside_a_flood_waits_for_its_bound_one_answer_and_one_load(urgency: Urgency) -> None:
    """The coder is asked twice as fast as it can answer; the architect once."""
    rules = Rules(bounds_ms={**BOUNDS_MS, "batch": 600_000})
    flood = [Ask(at * 5_000, "coder", 300) for at in range(400)]
    run = VirtualNode(MODELS, TOTAL_BYTES, rules=rules).run([*flood, Ask(30_000, "architect", 300, urgency)])
    (fate,) = (fate for fate in run.served if fate.job.model == "architect")
    assert fate.wait_ms <= rules.bounds_ms[urgency] + 10_000 + 500 + 26_000


def test_alternating_models_are_loaded_a_fifth_as_often_and_served_three_times_as_fast() -> None:
    asks = list(in_turn(120, 2_000))
    ours = VirtualNode(MODELS, TOTAL_BYTES).run(asks)
    theirs = VirtualNode(MODELS, TOTAL_BYTES, scheduler=fifo).run(asks)
    assert theirs.loads >= 5 * ours.loads
    assert theirs.end_ms >= 3 * ours.end_ms


def test_a_node_that_takes_only_what_it_could_hold_next_does_as_well() -> None:
    """Heads and numbers are enough: the rest stays on the bus, where a router may still move it."""
    for asks in (list(in_turn(120, 2_000)), list(poisson(0.6, random.Random(1)))):
        knowing, pulling = (VirtualNode(MODELS, TOTAL_BYTES, pulls=pulls).run(asks) for pulls in (False, True))
        assert len(pulling.served) == len(asks)
        assert pulling.loads <= knowing.loads * 1.05
        assert figures([pulling]).violations == 0


def test_under_poisson_load_the_urgent_wait_less_than_with_any_other_and_nobody_for_nothing() -> None:
    asks = list(poisson(0.6, random.Random(1)))
    ours = figures([VirtualNode(MODELS, TOTAL_BYTES).run(asks)])
    assert ours.violations == 0
    for scheduler in (fifo, lru, ollama):
        others = figures([VirtualNode(MODELS, TOTAL_BYTES, scheduler=scheduler).run(asks)])
        assert ours.p95_ms["critical"] < others.p95_ms["critical"]
        assert others.violations > 0


@pytest.mark.parametrize("goal", ["last", "mean"])
def test_nobody_beats_the_optimum(goal: Goal) -> None:
    for seed in range(12):
        asks = small(random.Random(seed))
        for scheduler in (schedule, fifo, lru, ollama):
            run = VirtualNode(MODELS, TOTAL_BYTES, scheduler=scheduler).run(asks)
            cost = run.end_ms if goal == "last" else sum(fate.end_ms - fate.job.arrived_ms for fate in run.served)
            assert Optimum(MODELS, TOTAL_BYTES, asks, goal).best(10**12) <= cost


def test_the_optimum_of_three_requests_by_hand() -> None:
    """Coder 9.5 s and two answers of 10 s, then half a second and 26 s for the architect and 4 s for its answer."""
    asks = [Ask(0, "architect", 100), Ask(0, "coder", 300), Ask(0, "coder", 300)]
    assert Optimum(MODELS, TOTAL_BYTES, asks, "last").best(10**12) == 60_000
    assert Optimum(MODELS, TOTAL_BYTES, asks, "mean").best(10**12) == 19_500 + 29_500 + 60_000


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 600_000)), max_size=20), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_memory_that_comes_and_goes_delays_work_and_loses_none(taken: list[tuple[int, int]], seed: int) -> None:
    """Another program takes and gives back memory; no load begins that would leave less than the headroom."""
    asks = [replace(ask, timeout_ms=FOREVER_MS) for ask in poisson(0.3, random.Random(seed))][:25]
    node = VirtualNode(MODELS, TOTAL_BYTES)

    def measure(taken_gb: int) -> None:
        held = sum(model.memory_bytes for model in node.state.models.values() if model.phase != "absent")
        node.measured(max(0, TOTAL_BYTES - held - taken_gb * GB))

    for gb, at_ms in taken:
        node.clock.at(at_ms, lambda gb=gb: measure(gb))  # type: ignore[misc]
    for at_ms in range(600_000, 700_000, 1_000):
        node.clock.at(at_ms, lambda: measure(0))
    run = node.run(asks)
    assert all(fate.starts == 1 for fate in run.fates.values())
