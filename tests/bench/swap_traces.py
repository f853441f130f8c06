"""Who asks what when: the mixed work of agents on one machine of 64 GB that cannot hold all their models at once."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

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
    name: str
    asks: Sequence[Ask]
    alternating: bool = False
    """It counts for the marks of loads and throughput."""


def traces(quick: bool) -> list[Trace]:
    part = 3 if quick else 1
    return [
        Trace("A/B in turn, one every 2 s", list(in_turn(240 // part, 2_000)), alternating=True),
        Trace("A/B in turn, all at once", list(in_turn(120 // part, 0)), alternating=True),
        Trace("agents: architect, coder, reviewer", list(agents(6, 12 // part))),
        Trace("one agent alone", list(agents(1, 12 // part))),
        Trace("talk and nightly batch", list(talk_and_batch(6 * HOUR_MS // part, every_ms=0))),
        Trace("talk and batch that trickles in", list(talk_and_batch(6 * HOUR_MS // part, every_ms=90_000))),
        Trace("bursts", list(bursts(12 // part))),
        Trace("one model starving", list(starving(2 * HOUR_MS // part, "normal", 300_000))),
        Trace("batch starving", list(starving(12 * HOUR_MS, "batch", HOUR_MS))),
        Trace("deadlines", list(deadlines(300 // part))),
        *(Trace(f"Poisson, {load:.0%} load", list(poisson(load, 1_500 // part))) for load in (0.3, 0.6, 0.9)),
    ]


def in_turn(number: int, every_ms: int) -> Iterator[Ask]:
    """Two agents that ask the architect and the coder by turns; 4 s each."""
    for at in range(number):
        yield Ask(at * every_ms, "coder", 120) if at % 2 else Ask(at * every_ms, "architect", 100)


def agents(number: int, rounds: int) -> Iterator[Ask]:
    """Each asks for a plan, then for code, then for a review, then again; the next when the last is answered."""
    chance = random.Random(1)
    for agent in range(number):
        steps = [
            Ask(1_000, model, chance.randint(tokens // 2, tokens * 3 // 2))
            for _ in range(rounds)
            for model, tokens in (("architect", 400), ("coder", 900), ("reviewer", 300))
        ]
        first = reduce(lambda following, ask: _then(ask, following), reversed(steps[:-1]), steps[-1])
        yield Ask(agent * 5_000, first.model, first.tokens, follow_up=first.follow_up)


def _then(ask: Ask, following: Ask) -> Ask:
    return Ask(ask.at_ms, ask.model, ask.tokens, ask.urgency, follow_up=following)


def talk_and_batch(length_ms: int, every_ms: int) -> Iterator[Ask]:
    """Players talk to figures (coder, high) in conversations; the architect has long batch work all night."""
    chance = random.Random(2)
    for at in range(length_ms // 90_000):
        yield Ask(at * every_ms, "architect", chance.randint(500, 1_500), "batch")
    at_ms = 0
    while at_ms < length_ms:
        at_ms += round(chance.expovariate(1 / 400_000))
        for _ in range(chance.randint(2, 9)):
            yield Ask(at_ms, "coder", chance.randint(40, 140), "high")
            at_ms += round(chance.uniform(6_000, 20_000))


def bursts(number: int) -> Iterator[Ask]:
    chance = random.Random(3)
    urgencies: Sequence[Urgency] = ("critical", "high", "high", "normal", "normal", "normal", "normal", "batch")
    for burst in range(number):
        for _ in range(18):
            at_ms = burst * 600_000 + chance.randint(0, 20_000)
            yield Ask(at_ms, chance.choice(MODELS).name, chance.randint(100, 500), chance.choice(urgencies))


def starving(length_ms: int, urgency: Urgency, every_ms: int) -> Iterator[Ask]:
    """The coder is asked faster than it answers half of the time; now and then somebody needs the architect."""
    chance = random.Random(4)
    for at_ms in range(0, length_ms, 6_000):
        yield Ask(at_ms, "coder", chance.randint(60, 240))
    for at_ms in range(60_000, length_ms - 60_000, every_ms):
        yield Ask(at_ms, "architect", chance.randint(300, 500), urgency)


def deadlines(number: int) -> Iterator[Ask]:
    chance, at_ms = random.Random(5), 0
    for _ in range(number):
        at_ms += round(chance.expovariate(1 / 20_000))
        timeout_ms = chance.choice((60_000, 100_000, 200_000, FOREVER_MS))
        yield Ask(at_ms, chance.choice(MODELS).name, chance.randint(100, 400), "normal", timeout_ms)


def poisson(load: float, number: int) -> Iterator[Ask]:
    chance, at_ms = random.Random(6), 0.0
    urgencies: Sequence[Urgency] = ("critical", "high", "high", *(("normal",) * 5), "batch", "batch")
    mix = (("architect", 400), ("coder", 300), ("reviewer", 200))
    for _ in range(number):
        at_ms += chance.expovariate(load / BUSY_MS)
        model, tokens = chance.choices(mix, (20, 50, 30))[0]
        yield Ask(round(at_ms), model, chance.randint(tokens // 2, tokens * 3 // 2), chance.choice(urgencies))
