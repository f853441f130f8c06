"""A request's time and its share of retries: nothing starts after the one, nobody is stormed by the other."""

import asyncio

from router.core.next_step import MAX_CALLS
from router.retry_budget import FLOOR, SHARE
from tests.support.faults import OOPS, SILENT, Held, ask, begin, both_ways, heard, nothing_left, tried, usd
from tests.support.openai_speech import error, refusing
from tests.support.scripted_upstream import Exchange
from tests.support.upstreams import alone, one_slot, patient, upstreams


@both_ways
async def test_a_running_call_is_stopped_at_the_deadline_and_its_connection_closed(stream: bool) -> None:
    async with upstreams(patient) as up:
        up.primary.script = Held(asyncio.Event(), tokens=5)
        reply = await ask(up, stream=stream, deadline_ms=600)
        assert (tried(reply.attempts), up.calls) == (["primary deadline"], (1, 0, 0))
        assert reply.error is not None
        assert (reply.error.type, reply.error.spent) == ("deadline_exceeded", "unknown")
        assert reply.wasted_usd == usd("primary", heard(5))
        async with asyncio.timeout(5):
            await up.primary.exchanges[0].gone.wait()
        await nothing_left(up)


async def test_no_attempt_starts_after_the_deadline() -> None:
    go = asyncio.Event()
    async with upstreams(one_slot) as up:
        up.primary.script = Held(go)
        running = asyncio.create_task(ask(up, "r1"))
        await up.primary.arrived.wait()
        # The node has taken the first of these and has no place for it; the other one still lies on the bus.
        late = (ask(up, f"late{n}", urgency="high", deadline_ms=300) for n in range(2))
        for reply in await asyncio.gather(*late):
            assert tried(reply.attempts) == ["primary deadline"]
            assert reply.error is not None
            assert (reply.error.type, reply.error.spent, reply.wasted_usd) == ("deadline_exceeded", "no", None)
        go.set()
        assert (await running).model == "primary"
        await nothing_left(up)
        assert up.calls == (1, 0, 0)


async def test_after_a_failure_past_the_deadline_nobody_else_is_called() -> None:
    async def slow_refusal(exchange: Exchange) -> None:
        await begin(exchange, 1)
        await exchange.client_gone()

    async with upstreams() as up:  # 400 ms between two pieces are allowed, the whole time is over before
        up.primary.script = slow_refusal
        reply = await ask(up, deadline_ms=300)
        assert tried(reply.attempts) == ["primary deadline"]
        await nothing_left(up)
        assert up.calls == (1, 0, 0)


async def test_a_wait_that_does_not_fit_the_deadline_is_not_made() -> None:
    async with upstreams() as up:
        up.primary.script = refusing(429, error("slow down"), Retry_After="3")
        reply = await ask(up, deadline_ms=3_000)
        assert (tried(reply.attempts), up.calls) == (["primary rate_limited", "second"], (1, 1, 0))
        await nothing_left(up)


async def test_a_wait_that_does_not_fit_and_nobody_else_is_told_at_once_with_the_time_to_come_again() -> None:
    async with upstreams(alone) as up:
        up.primary.script = refusing(429, error("slow down"), Retry_After="30")
        reply = await ask(up, deadline_ms=20_000)
        assert (tried(reply.attempts), up.calls) == (["primary rate_limited"], (1, 0, 0))
        assert reply.error is not None
        assert (reply.error.type, reply.error.retryable) == ("upstream_rate_limited", True)
        assert reply.error.retry_after_ms == 30_000
        await nothing_left(up)


async def test_attempts_are_bounded_whatever_the_chain() -> None:
    async with upstreams(max_attempts=2) as up:
        up.primary.script, up.second.script = OOPS, SILENT
        reply = await ask(up)
        assert up.calls == (2, 1, 0)
        assert len(reply.attempts) == 3 <= MAX_CALLS
        assert reply.error is not None
        assert reply.error.type == "all_targets_failed"


async def test_retries_of_a_failing_target_stay_a_tenth_of_the_traffic() -> None:
    async with upstreams(patient, breaker_failures=1_000) as up:
        up.primary.script = OOPS
        replies = await asyncio.gather(*(ask(up, f"r{n}") for n in range(100)))
        assert {reply.model for reply in replies} == {"second"}
        asked_again = sum(tried(reply.attempts).count("primary server_error") - 1 for reply in replies)
        assert up.calls == (100 + asked_again, 100, 0)
        assert FLOOR <= asked_again <= 100 * SHARE
        await nothing_left(up)
