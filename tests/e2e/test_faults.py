"""Every fault of an upstream, over the bus, streamed and not: what the client gets, who was called, what it cost."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate

import pytest

from ops.policy_file import load_policy
from ops.policy_in_force import SHIPPED, shipped_policy
from schemas.policy import Model
from schemas.work import Usage
from tests.support.faults import (
    AWAY,
    COUNTED,
    OOPS,
    PROMPT,
    SILENT,
    TOKENS,
    TOO_MANY,
    ask,
    both_ways,
    cut,
    heard,
    late,
    malformed,
    nothing_left,
    once,
    reset,
    stalling,
    tried,
    unterminated,
    usd,
)
from tests.support.openai_speech import DONE, FINISH, error, event, refusing
from tests.support.scripted_upstream import Exchange, Script, ScriptedUpstream
from tests.support.upstreams import Policy, alone, answering, upstreams


@dataclass(frozen=True, slots=True)
class Case:
    """What the primary does; who is called how often; the attempts; what the failed ones have used, each alike."""

    fault: Script
    calls: tuple[int, int, int]
    attempts: tuple[str, ...]
    used: Usage | None = None


TWICE = ("primary server_error", "primary server_error", "second")


def broken(kind: str, tokens: int) -> tuple[tuple[int, int, int], tuple[str, ...], Usage]:
    return (1, 1, 0), (f"primary {kind}", "second"), heard(tokens)


CASES = {
    "500 for ever": Case(OOPS, (2, 1, 0), TWICE),
    "503 for ever": Case(AWAY, (2, 1, 0), TWICE),
    "429 for ever": Case(TOO_MANY, (1, 1, 0), ("primary rate_limited", "second")),
    "401": Case(refusing(401, error("who are you")), (1, 1, 0), ("primary auth", "second")),
    "reset for ever": Case(reset, (2, 1, 0), ("primary connection", "primary connection", "second")),
    "never answers": Case(SILENT, *broken("silence", 0)),
    "late first token": Case(late, *broken("silence", 0)),
    "cut, FIN": Case(cut("fin"), *broken("interrupted", 40)),
    "cut, RST": Case(cut("rst"), *broken("interrupted", 40)),
    "stall": Case(stalling, *broken("interrupted", 40)),
    "malformed tenth chunk": Case(malformed, *broken("malformed", 9)),
    "no terminator": Case(unterminated, *broken("interrupted", 60)),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_fault_is_served_by_the_next_target_whole_and_its_cost_is_told_apart(name: str) -> None:
    await asyncio.gather(*(served_by_the_second(CASES[name], stream) for stream in (False, True)))


async def served_by_the_second(case: Case, stream: bool) -> None:
    async with upstreams() as up:
        up.primary.script = case.fault
        reply = await ask(up, stream=stream)
        assert (tuple(tried(reply.attempts)), up.calls) == (case.attempts, case.calls)
        assert reply.message is not None
        assert (reply.message.content, reply.model, reply.provider) == ("second", "second", "second")
        assert (reply.usage, reply.cost_usd) == (COUNTED, usd("second", COUNTED))
        assert [attempt.usage for attempt in reply.attempts[:-1]] == [case.used] * (len(reply.attempts) - 1)
        assert reply.wasted_usd == (usd("primary", case.used) if case.used else None)
        await nothing_left(up)


@pytest.mark.parametrize(("fault", "kind"), [(OOPS, "server_error"), (reset, "connection")], ids=["500", "reset"])
async def test_what_fails_once_is_served_by_the_same_target(fault: Script, kind: str) -> None:
    await asyncio.gather(*(served_in_the_end(fault, kind, stream) for stream in (False, True)))


async def served_in_the_end(fault: Script, kind: str, stream: bool) -> None:
    async with upstreams() as up:
        up.primary.script = once(fault)
        reply = await ask(up, stream=stream)
        assert (tried(reply.attempts), up.calls) == ([f"primary {kind}", "primary"], (2, 0, 0))
        assert reply.message is not None
        assert (reply.message.content, reply.wasted_usd) == ("primary", None)
        await nothing_left(up)


def two_seconds() -> list[dict[str, str]]:
    """Every way to ask for two seconds of patience."""
    date, then = formatdate(1_800_000_000, usegmt=True), formatdate(1_800_000_002, usegmt=True)
    return [{"Retry_After": "2"}, {"retry_after_ms": "2000"}, {"Retry_After": then, "Date": date}]


async def test_retry_after_is_obeyed_in_each_of_its_forms_and_nobody_else_is_asked() -> None:
    clock = asyncio.get_running_loop().time

    async def patiently(form: Mapping[str, str], stream: bool) -> None:
        asked_at: list[float] = []
        refusal = refusing(429, error("slow down"), **form)

        async def script(exchange: Exchange) -> None:
            asked_at.append(clock())
            await (refusal if len(asked_at) == 1 else answering("primary"))(exchange)

        async with upstreams() as up:
            up.primary.script = script
            reply = await ask(up, stream=stream)
            assert (tried(reply.attempts), up.calls) == (["primary rate_limited", "primary"], (2, 0, 0))
            assert reply.attempts[0].failure is not None
            assert reply.attempts[0].failure.retry_after_ms == 2000
            assert asked_at[1] - asked_at[0] >= 2
            assert (reply.model, reply.wasted_usd) == ("primary", None)
            await nothing_left(up)

    await asyncio.gather(*(patiently(form, stream) for form in two_seconds() for stream in (False, True)))


@both_ways
async def test_a_target_that_asks_for_more_patience_than_allowed_is_passed_over(stream: bool) -> None:
    async with upstreams(max_retry_after_ms=1_000) as up:
        up.primary.script = refusing(429, error("slow down"), Retry_After="2")
        reply = await ask(up, stream=stream)
        assert (tried(reply.attempts), up.calls) == (["primary rate_limited", "second"], (1, 1, 0))
        await nothing_left(up)


def test_a_silent_cloud_model_is_given_up_well_within_fifteen_seconds() -> None:
    assert Model.model_fields["first_token_ms"].default == 10_000
    models = load_policy(shipped_policy(), SHIPPED).models.values()
    chatting = [m for m in models if m.nodes == ("cloud",) and not m.embeds]
    assert [m.first_token_ms for m in chatting] == [10_000] * 4


@both_ways
async def test_a_context_that_is_too_long_goes_to_the_chain_of_larger_ones(stream: bool) -> None:
    def chain(policy: Policy) -> None:
        policy["fallbacks"]["context_too_long"] = ["third"]

    async with upstreams(chain) as up:
        up.primary.script = refusing(400, error("This model's maximum is 100k", code="context_length_exceeded"))
        reply = await ask(up, stream=stream)
        assert (tried(reply.attempts), up.calls) == (["primary context_too_long", "third"], (1, 0, 1))
        assert (reply.cost_usd, reply.wasted_usd) == (usd("third", COUNTED), None)
        await nothing_left(up)


@both_ways
async def test_a_context_that_is_too_long_is_never_tried_on_one_no_larger(stream: bool) -> None:
    def shrink(policy: Policy) -> None:
        policy["models"]["second"]["context_tokens"] = policy["models"]["primary"]["context_tokens"]

    async with upstreams(shrink) as up:
        up.primary.script = refusing(400, error("too long", code="context_length_exceeded"))
        reply = await ask(up, stream=stream)
        assert (tried(reply.attempts), up.calls) == (["primary context_too_long", "third"], (1, 0, 1))


@both_ways
async def test_a_refusal_for_content_is_returned_in_the_upstreams_words_and_not_routed_around(stream: bool) -> None:
    async with upstreams() as up:
        up.primary.script = refusing(400, error("사용 정책에 어긋납니다", code="content_policy_violation"))
        reply = await ask(up, stream=stream)
        assert (tried(reply.attempts), up.calls) == (["primary content_policy"], (1, 0, 0))
        assert reply.error is not None
        assert (reply.error.type, reply.error.retryable) == ("upstream_error", False)
        assert "사용 정책에 어긋납니다" in reply.error.message
        failure = reply.attempts[0].failure
        assert failure is not None
        assert (failure.status, "content_policy_violation" in (failure.upstream or "")) == (400, True)
        await nothing_left(up)


@both_ways
async def test_after_a_cut_the_fallback_is_asked_the_original_conversation(stream: bool) -> None:
    async def no_prefill(exchange: Exchange) -> None:
        if exchange.json()["messages"][-1]["role"] == "assistant":
            await refusing(400, error("This model does not support assistant message prefill"))(exchange)
        else:
            await answering("second")(exchange)

    async with upstreams() as up:
        up.primary.script, up.second.script = cut("fin"), no_prefill
        reply = await ask(up, stream=stream)
        assert tried(reply.attempts) == ["primary interrupted", "second"]
        asked = [one.exchanges[0].json()["messages"] for one in (up.primary, up.second)]
        assert asked == [[{"role": "user", "content": PROMPT}]] * 2
        assert reply.message is not None
        assert reply.message.content == "second"
        await nothing_left(up)


@both_ways
async def test_when_all_have_failed_one_error_lists_every_attempt_with_its_reason(stream: bool) -> None:
    async with upstreams() as up:
        up.primary.script, up.second.script, up.third.script = OOPS, TOO_MANY, SILENT
        reply = await ask(up, stream=stream)
        kinds = ["primary server_error", "primary server_error", "second rate_limited", "third silence"]
        assert (tried(reply.attempts), up.calls) == (kinds, (2, 1, 1))
        assert reply.error is not None
        assert (reply.error.type, reply.error.retryable, reply.error.spent) == ("all_targets_failed", True, "unknown")
        *_, told = reply.error.message.partition("every target failed: ")
        assert [each.partition(":")[0] for each in told.split("; ")] == [
            "primary@bench server_error", "primary@bench server_error", "second@bench rate_limited",
            "third@bench silence",
        ]  # fmt: skip
        assert "slow down" in told
        assert reply.wasted_usd == usd("third", heard(0))
        await nothing_left(up)


@both_ways
async def test_an_upstream_that_has_gone_is_found_out_by_the_call(stream: bool) -> None:
    async with upstreams() as up:
        await up.primary.close()
        reply = await ask(up, stream=stream)
        kinds = ["primary connection", "primary connection", "second"]
        assert (tried(reply.attempts), up.calls) == (kinds, (0, 1, 0))
        assert reply.wasted_usd is None
        await nothing_left(up)


@both_ways
async def test_an_upstream_that_was_never_there_is_not_called(stream: bool) -> None:
    async with ScriptedUpstream() as gone:
        pass  # its port is free now

    def nowhere(policy: Policy) -> None:
        policy["providers"]["primary"]["url"] = gone.url

    async with upstreams(nowhere) as up:
        reply = await ask(up, stream=stream)
        assert (tried(reply.attempts), up.calls) == (["second"], (0, 1, 0))


USAGES = {
    "missing": None,
    "more than anybody uses": {"prompt_tokens": 10**9, "completion_tokens": 10},
    "negative": {"prompt_tokens": 20, "completion_tokens": -10},
    "no numbers": {"prompt_tokens": "20", "completion_tokens": True},
    "all zero": {"prompt_tokens": 0, "completion_tokens": 0},
    "no object": [20, 10],
}


@both_ways
async def test_a_usage_that_is_missing_or_cannot_be_true_is_counted_and_marked(stream: bool) -> None:
    async with upstreams() as up:
        for n, usage in enumerate(USAGES.values()):
            said = b"" if usage is None else event(usage=usage)
            text = event({"content": "".join(TOKENS[:40])})
            up.primary.script = lambda exchange, body=text + FINISH + said + DONE: exchange.stream(body)
            reply = await ask(up, f"r{n}", stream=stream)
            assert (reply.usage, reply.wasted_usd) == (heard(40), None)
            assert reply.cost_usd == usd("primary", heard(40))
        assert up.calls == (len(USAGES), 0, 0)


async def test_a_model_without_a_price_has_no_cost_rather_than_none_at_all() -> None:
    def unpriced(policy: Policy) -> None:
        for model in policy["models"].values():
            del model["price"]

    async with upstreams(unpriced) as up:
        up.primary.script = cut("fin")
        reply = await up.bus.client.ask(PROMPT)
        assert (reply.cost_usd, reply.wasted_usd, reply.usage) == (None, None, COUNTED)
        assert [attempt.cost_usd for attempt in reply.attempts] == [None, None]


async def test_half_an_answer_is_asked_for_once_more_when_there_is_nobody_else() -> None:
    async with upstreams(alone) as up:
        up.primary.script = once(cut("fin"))
        reply = await ask(up, stream=True)
        assert (tried(reply.attempts), up.calls) == (["primary interrupted", "primary"], (2, 0, 0))
        assert reply.wasted_usd == usd("primary", heard(40))
