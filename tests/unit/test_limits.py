"""What a client may still do follows from what was counted, to the last place, second and millionth of a dollar."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.edge import limits as may
from adapters.edge.ports import Submission
from ops.policy_file import load_policy
from router.core.weigh import weigh
from schemas.client import ClientLimits
from schemas.failure import ErrorType
from schemas.request import LlmRequest
from tests.support.inside import POLICY

ASKED = Submission("npc-ai", "r1", "chat", b"{}", 60_000)
USD = st.decimals(0, 1000, places=9)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, ""),
        ({"authorization": "Bearer llmbus_a_b"}, "llmbus_a_b"),
        ({"authorization": "bearer  llmbus_a_b "}, "llmbus_a_b"),
        ({"authorization": "Basic llmbus_a_b"}, ""),
        ({"authorization": "llmbus_a_b"}, ""),
        ({"x-api-key": "llmbus_a_b"}, "llmbus_a_b"),
        ({"authorization": "Bearer sk-else", "x-api-key": "llmbus_a_b"}, "llmbus_a_b"),
        ({"authorization": "Bearer llmbus_a_b", "x-api-key": "sk-else"}, "llmbus_a_b"),
        ({"authorization": "Bearer sk-else", "x-api-key": "dummy"}, "sk-else"),
    ],
)
def test_a_key_of_ours_is_found_beside_any_other(headers: dict[str, str], key: str) -> None:
    assert may.shown_key(headers) == key


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "127.0.0.1:8484"}, True),
        ({"host": "localhost:8484"}, True),
        ({"host": "[::1]:8484"}, True),
        ({}, True),
        ({"host": "localhost", "origin": "http://localhost:3000"}, True),
        ({"host": "localhost", "origin": "vscode-webview://x"}, True),
        ({"host": "localhost", "origin": "https://evil.example"}, False),
        ({"host": "localhost", "origin": "http://127.0.0.1.evil.example"}, False),
        ({"host": "localhost", "origin": "null"}, False),
        ({"host": "rebound.example:8484"}, False),
        ({"host": "[::1"}, False),
        ({"host": "'; DROP TABLE keys; --"}, False),
    ],
)
def test_without_a_key_only_this_machine_itself_asks(headers: dict[str, str], allowed: bool) -> None:
    refusal = may.from_elsewhere(headers, "r1")
    assert (refusal is None) == allowed
    assert refusal is None or refusal.error.type is ErrorType.FORBIDDEN


def test_a_capability_that_is_not_the_clients_is_forbidden() -> None:
    assert may.forbidden(ClientLimits(), ASKED) is None
    assert may.forbidden(ClientLimits(capabilities=("code", "chat")), ASKED) is None
    refusal = may.forbidden(ClientLimits(capabilities=("code",)), ASKED)
    assert refusal is not None
    assert refusal.error.type is ErrorType.FORBIDDEN


@pytest.mark.parametrize(("now_ms", "wait_ms"), [(0, 60_000), (59_999, 1), (90_500, 29_500)])
def test_who_is_over_the_minute_is_told_when_the_next_begins(now_ms: int, wait_ms: int) -> None:
    assert may.over_the_minute("tokens", 500, 100, 500, now_ms, ASKED) is None
    refusal = may.over_the_minute("tokens", 501, 100, 500, now_ms, ASKED)
    assert refusal is not None
    assert (refusal.error.type, refusal.error.retry_after_ms) == (ErrorType.RATE_LIMITED, wait_ms)
    assert refusal.error.retryable
    alone = may.over_the_minute("tokens", 501, 501, 500, now_ms, ASKED)
    assert alone is not None
    assert alone.error.retry_after_ms is None
    assert "may come to 501" in alone.error.message


def test_places_are_taken_in_turn_and_never_without_end() -> None:
    assert may.too_many(2, 1, ASKED) is None
    assert may.too_many(2, 2, ASKED) is not None
    assert may.places(ClientLimits(concurrent=2)) == 2
    assert may.places(ClientLimits(usd_per_day=Decimal(1))) == may.MAX_PLACES


@given(USD, USD, st.lists(st.integers(0, 10**9), max_size=5), USD)
def test_all_budgets_together_never_pass_what_is_left(
    per_day: Decimal, spent: Decimal, before: list[int], usd: Decimal
) -> None:
    wanted = may.micro_usd(usd)
    given_usd = may.budget(per_day, spent, before, wanted)
    assert 0 <= given_usd <= Decimal(wanted) / 1_000_000
    assert given_usd == 0 or spent + given_usd + Decimal(sum(before)) / 1_000_000 <= per_day


@given(USD)
def test_a_budget_for_a_price_is_enough_for_it_as_the_router_reads_it(usd: Decimal) -> None:
    given_usd = may.budget(Decimal(10**6), Decimal(0), [], may.micro_usd(usd))
    assert usd <= float(f"{given_usd:f}")


def test_a_request_weighs_what_its_dearest_model_in_reach_would_cost() -> None:
    policy = load_policy(POLICY, "loopback_policy.yaml")
    request = LlmRequest.model_validate({"prompt": "항구를 묘사해 줘" * 100, "preferences": {"max_tokens": 1000}})
    tokens_in = len(request.prompt.encode()) // 4 + 4 if request.prompt else 0
    cheap = Decimal(tokens_in * 1 + 1000 * 2) / 1_000_000
    assert weigh(request, "chat", policy) == (tokens_in + 1000, 3 * cheap)
    assert weigh(request, "chat", policy, ["echo"]) == (tokens_in + 1000, cheap)
    assert weigh(request, "chat", policy, ["echo"]).tokens == tokens_in + 1000
    bounded = request.model_copy(update={"constraints": request.constraints.model_copy(update={"max_cost_usd": 0.001})})
    assert weigh(bounded, "chat", policy).usd == Decimal.from_float(0.001)
    assert weigh(request, "nothing", policy).usd == 0
