"""Who asks what when: the mixed work of agents on one machine of 64 GB that cannot hold all their models at once."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

from router.core.residency import GB, ModelSpec
from subjects.grammar import Urgency
from tests.support.virtual_node import FOREVER_MS, Ask

TOTAL_BYTES = 64 * GB
ARCHITECT = ModelSpec("architect", 52 * GB, 25)
CODER = ModelSpec("coder", 19 * GB, 30)
REVIEWER = ModelSpec("reviewer", 9 * GB, 40, slots=2)
MODELS = (ARCHITECT, CODER, REVIEWER)
"""The judge is pinned on another machine."""
HOUR_MS = 3_600_000
BUSY_MS = 8_200
"""Of the node for one request of `poisson`, if nothing had to be loaded: the architect alone, the others together."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The same kind of work several times over, from other seeds: one draw says little about a 95th percentile."""

    name: str
    draws: Sequence[Sequence[Ask]]
    alternating: bool = False
    """It counts for the marks of loads and throughput."""
    counted: bool = True
    """False: shown on its own, and counted within another."""


def traces(quick: bool) -> list[Trace]:
    seeds = range(1, 3 if quick else 7)

    def drawn(name: str, draw: Callable[[random.Random], Iterator[Ask]]) -> Trace:
        return Trace(name, [list(draw(random.Random(seed))) for seed in seeds])

    crowds = [replace(drawn(f"agents in turn, {each}", partial(agents, each)), counted=False) for each in (1, 3, 6, 12)]
    return [
        Trace("A/B in turn, one every 2 s", [list(in_turn(240, 2_000))], alternating=True),
        Trace("A/B in turn, all at once", [list(in_turn(120, 0))], alternating=True),
        Trace("agents in turn", [draw for each in crowds for draw in each.draws]),
        *crowds,
        drawn("talk and nightly batch", partial(talk_and_batch, every_ms=0)),
        drawn("talk and batch that trickles", partial(talk_and_batch, every_ms=90_000)),
        drawn("bursts", bursts),
        drawn("one model starving", partial(starving, 2 * HOUR_MS, "normal", 300_000)),
        drawn("batch starving", partial(starving, 12 * HOUR_MS, "batch", HOUR_MS)),
        drawn("deadlines", deadlines),
        *(drawn(f"Poisson, {load:.0%} load", partial(poisson, load)) for load in (0.3, 0.6, 0.9)),
    ]


def in_turn(number: int, every_ms: int) -> Iterator[Ask]:
    """Two agents that ask the architect and the coder by turns; 4 s each."""
    for at in range(number):
        yield Ask(at * every_ms, "coder", 120) if at % 2 else Ask(at * every_ms, "architect", 100)


def agents(number: int, chance: random.Random) -> Iterator[Ask]:
    """Each asks for a plan, then for code, then for a review, then again; the next when the last is answered."""
    for agent in range(number):
        steps = [
            Ask(1_000, model, chance.randint(tokens // 2, tokens * 3 // 2))
            for _ in range(12)
            for model, tokens in (("architect", 400), ("coder", 900), ("reviewer", 300))
        ]
        first = reduce(lambda following, ask: _then(ask, following), reversed(steps[:-1]), steps[-1])
        yield Ask(agent * 5_000, first.model, first.tokens, follow_up=first.follow_up)


def _then(ask: Ask, following: Ask) -> Ask:
    return Ask(ask.at_ms, ask.model, ask.tokens, ask.urgency, follow_up=following)


def talk_and_batch(chance: random.Random, every_ms: int) -> Iterator[Ask]:
    """Players talk to figures (coder, high) in conversations; the architect has 240 pieces of batch work, 40 s each."""
    for at in range(240):
        yield Ask(at * every_ms, "architect", chance.randint(500, 1_500), "batch")
    at_ms = 0
    while at_ms < 6 * HOUR_MS:
        at_ms += round(chance.expovariate(1 / 400_000))
        for _ in range(chance.randint(2, 9)):
            yield Ask(at_ms, "coder", chance.randint(40, 140), "high")
            at_ms += round(chance.uniform(6_000, 20_000))


def bursts(chance: random.Random) -> Iterator[Ask]:
    urgencies: Sequence[Urgency] = ("critical", "high", "high", "normal", "normal", "normal", "normal", "batch")
    for burst in range(12):
        for _ in range(18):
            at_ms = burst * 600_000 + chance.randint(0, 20_000)
            yield Ask(at_ms, chance.choice(MODELS).name, chance.randint(100, 500), chance.choice(urgencies))


def starving(length_ms: int, urgency: Urgency, every_ms: int, chance: random.Random) -> Iterator[Ask]:
    """The coder is kept busy most of the time; now and then somebody needs the architect."""
    for at_ms in range(0, length_ms, 6_000):
        yield Ask(at_ms, "coder", chance.randint(60, 220))
    for at_ms in range(60_000, length_ms - 60_000, every_ms):
        yield Ask(at_ms, "architect", chance.randint(300, 500), urgency)


def deadlines(chance: random.Random) -> Iterator[Ask]:
    at_ms = 0
    for _ in range(300):
        at_ms += round(chance.expovariate(1 / 20_000))
        timeout_ms = chance.choice((60_000, 100_000, 200_000, FOREVER_MS))
        yield Ask(at_ms, chance.choice(MODELS).name, chance.randint(100, 400), "normal", timeout_ms)


def poisson(load: float, chance: random.Random) -> Iterator[Ask]:
    at_ms = 0.0
    urgencies: Sequence[Urgency] = ("critical", "high", "high", *(("normal",) * 5), "batch", "batch")
    mix = (("architect", 400), ("coder", 300), ("reviewer", 200))
    for _ in range(1_000):
        at_ms += chance.expovariate(load / BUSY_MS)
        model, tokens = chance.choices(mix, (20, 50, 30))[0]
        yield Ask(round(at_ms), model, chance.randint(tokens // 2, tokens * 3 // 2), chance.choice(urgencies))


def small(chance: random.Random) -> list[Ask]:
    """Few enough for the exact search."""
    spread_ms = chance.choice((0, 30_000, 120_000, 300_000))
    asks = [
        Ask(chance.randint(0, spread_ms), chance.choice(MODELS).name, chance.randint(100, 600))
        for _ in range(chance.randint(4, 8))
    ]
    return sorted(asks, key=lambda ask: ask.at_ms)
