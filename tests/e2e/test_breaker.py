"""A model that fails too often is left alone, seen to be, and asked again by one request alone."""

import asyncio

import pytest

from schemas import Reply
from schemas.decision import Decided
from subjects.streams import EVENTS, WORK
from tests.support.faults import AWAY, SILENT, TOO_MANY, Held, ask, both_ways, cut, nothing_left, told_of, tried
from tests.support.openai_speech import error, refusing
from tests.support.scripted_upstream import Script
from tests.support.upstreams import Policy, Upstreams, alone, answering, upstreams

LONG_MS = 60_000


async def passed_over(up: Upstreams, rid: str) -> dict[str, str | None]:
    """Why the decision of a request left out which model."""
    async with asyncio.timeout(5):
        while (letter := await up.bus.bus.last(EVENTS, f"llm.evt.tester.{rid}.decided")) is None:
            await asyncio.sleep(0.01)
    considered = Decided.decode(letter.data).decision.candidates
    return {candidate.model: candidate.passed_over for candidate in considered if candidate.passed_over}


@pytest.mark.parametrize(
    ("fault", "kind", "calls"),
    [(AWAY, "server_error", 5), (cut("fin"), "interrupted", 5), (TOO_MANY, "rate_limited", 5), (SILENT, "silence", 1)],
    ids=["503", "cut", "429", "silence"],
)
async def test_it_opens_after_five_failures_and_at_once_after_silence_and_then_nobody_calls(
    fault: Script, kind: str, calls: int
) -> None:
    await asyncio.gather(*(left_alone(fault, kind, calls, stream) for stream in (False, True)))


async def left_alone(fault: Script, kind: str, calls: int, stream: bool) -> None:
    async with upstreams(breaker_open_ms=LONG_MS) as up:
        up.primary.script = fault
        for n in range(12):
            assert (await ask(up, f"r{n}", stream=stream)).model == "second"
        assert up.calls == (calls, 12, 0)
        seen = await told_of(up, "primary", lambda model: model.breaker == "open")
        assert (seen.last_failure, (seen.open_until_ms or 0) > up.bus.bus.now_ms()) == (kind, True)
        assert await passed_over(up, "r11") == {"primary": "breaker_open"}
        assert await passed_over(up, "r0") == {}
        await nothing_left(up)


async def test_a_success_in_between_starts_the_count_anew() -> None:
    async with upstreams(breaker_failures=2, breaker_open_ms=LONG_MS) as up:
        for n in range(3):
            up.primary.script = TOO_MANY
            assert (await ask(up, f"bad{n}")).model == "second"
            up.primary.script = answering("primary")
            assert (await ask(up, f"good{n}")).model == "primary"
        assert (await told_of(up, "primary", lambda _: True)).breaker == "closed"


async def test_half_open_one_request_finds_out_while_the_others_go_elsewhere() -> None:
    go = asyncio.Event()

    def later(policy: Policy) -> None:
        policy["models"]["primary"]["idle_ms"] = LONG_MS

    async with upstreams(later, breaker_open_ms=300) as up:
        up.primary.script = SILENT
        await ask(up, "r0")
        rests = await told_of(up, "primary", lambda model: model.breaker == "open")
        up.primary.script = Held(go)
        while up.bus.bus.now_ms() <= (rests.open_until_ms or 0):
            await asyncio.sleep(0.01)
        asks = [asyncio.create_task(ask(up, f"p{n}")) for n in range(20)]
        seen = await told_of(up, "primary", lambda model: model.breaker == "half_open")
        assert seen.last_failure == "silence"
        done, probing = await asyncio.wait(asks, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        while len(probing) > 1:
            more, probing = await asyncio.wait(probing, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert more, "only the probe may take so long"
            done |= more
        assert {reply.result().model for reply in done} == {"second"}
        assert up.calls == (2, 20, 0)
        go.set()
        assert (await probing.pop()).model == "primary"
        well = await told_of(up, "primary", lambda model: model.breaker == "closed")
        assert well.last_failure is None
        up.primary.script = answering("primary")
        assert (await ask(up, "after")).model == "primary"
        await nothing_left(up)


async def test_a_probe_that_fails_opens_it_again() -> None:
    async with upstreams(breaker_open_ms=200) as up:
        up.primary.script = SILENT
        await ask(up, "r0")
        first = await told_of(up, "primary", lambda model: model.breaker == "open")
        up.primary.script = AWAY
        while up.bus.bus.now_ms() <= (first.open_until_ms or 0):
            await asyncio.sleep(0.01)
        reply = await ask(up, "r1")
        assert (tried(reply.attempts), up.calls) == (["primary server_error", "second"], (2, 2, 0))
        again = await told_of(up, "primary", lambda model: model.open_until_ms != first.open_until_ms)
        assert (again.last_failure, (again.open_until_ms or 0) > (first.open_until_ms or 0)) == ("server_error", True)


async def all_open(up: Upstreams) -> None:
    """Every model has just fallen silent."""
    for upstream in (up.primary, up.second, up.third):
        upstream.script = SILENT
    reply = await ask(up, "first")
    assert reply.error is not None
    assert tried(reply.attempts) == ["primary silence", "second silence", "third silence"]
    for name in ("primary", "second", "third"):
        await told_of(up, name, lambda model: model.breaker == "open")


async def recover(up: Upstreams) -> None:
    up.primary.script, up.second.script, up.third.script = map(answering, ("primary", "second", "third"))


@both_ways
async def test_when_all_are_open_a_request_lies_on_the_bus_until_the_first_may_be_tried(stream: bool) -> None:
    async with upstreams(breaker_open_ms=2_000) as up:
        await all_open(up)
        before = up.calls
        asking = asyncio.create_task(ask(up, "r1", stream=stream, deadline_ms=20_000))
        async with asyncio.timeout(5):
            while not [letter async for letter in up.bus.bus.read(WORK, "llm.work.router.delay.>")]:
                await asyncio.sleep(0.01)
        assert up.calls == before, "nobody is called while it waits"
        await recover(up)
        reply: Reply = await asking
        assert (reply.status, tried(reply.attempts)) == ("ok", [reply.model])
        assert sum(up.calls) == sum(before) + 1
        await nothing_left(up)


async def test_when_all_are_open_and_time_is_short_the_least_bad_is_called_all_the_same() -> None:
    async with upstreams(breaker_open_ms=LONG_MS) as up:
        await all_open(up)
        before = sum(up.calls)
        await recover(up)
        reply = await ask(up, "r1", deadline_ms=5_000)
        # The one that opened first is the first to be tried again.
        assert (reply.model, tried(reply.attempts), sum(up.calls)) == ("primary", ["primary"], before + 1)
        # It is well, so its breaker is closed and the next one is served as ever.
        await told_of(up, "primary", lambda model: model.breaker == "closed")
        assert (await ask(up, "r2")).model == "primary"
        await nothing_left(up)


async def test_who_says_when_to_come_again_is_left_alone_until_then() -> None:
    async with upstreams(alone, breaker_open_ms=100) as up:
        up.primary.script = refusing(429, error("slow down"), Retry_After="1")
        first = asyncio.create_task(ask(up, "r1"))
        await told_of(up, "primary", lambda model: model.breaker == "open")
        up.primary.script = answering("primary")
        replies = await asyncio.gather(first, *(ask(up, f"more{n}") for n in range(5)))
        assert [reply.model for reply in replies] == ["primary"] * 6
        assert up.calls == (7, 0, 0)
        await nothing_left(up)
