"""Costs are exact, from our own prices, and None whenever they cannot be known."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.cost import cost_usd, expected_cost_usd, unpriced
from schemas.policy import Model, Price, PriceTier
from schemas.work import Usage


def model(price: Price | None = None, *, free_tier: bool = False) -> Model:
    return Model(
        nodes=("cloud",), provider="p", backend="b", context_tokens=1000, quality=0.5, tokens_per_s=10, price=price,
        free_tier=free_tier,
    )  # fmt: skip


GPT = Price(
    input_usd_per_mtok=Decimal("2.00"), output_usd_per_mtok=Decimal("8.00"), cached_input_usd_per_mtok=Decimal("0.50")
)
FREE = Price(input_usd_per_mtok=Decimal(0), output_usd_per_mtok=Decimal(0))
CLAUDE = Price(
    input_usd_per_mtok=Decimal(3),
    output_usd_per_mtok=Decimal(15),
    cached_input_usd_per_mtok=Decimal("0.3"),
    cache_write_input_usd_per_mtok=Decimal("3.75"),
    above=(
        PriceTier(above_tokens_in=1_000_000, input_usd_per_mtok=Decimal(12), output_usd_per_mtok=Decimal(45)),
        PriceTier(
            above_tokens_in=200_000,
            input_usd_per_mtok=Decimal(6),
            output_usd_per_mtok=Decimal("22.5"),
            cached_input_usd_per_mtok=Decimal("0.6"),
            cache_write_input_usd_per_mtok=Decimal("7.5"),
        ),
    ),
)
MINI = Price(usd_per_hour=Decimal("0.0135"))
PRICES = st.decimals(0, 1000, allow_nan=False, places=4)
TOKENS = st.integers(0, 10**7)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (Usage(tokens_in=1_000_000), "2"),
        (Usage(tokens_out=1_000_000), "8"),
        (Usage(tokens_in=1, tokens_out=1), "0.00001"),
        (Usage(tokens_in=1_000_000, cached_tokens_in=400_000), "1.4"),
        (Usage(tokens_in=10, cached_tokens_in=400_000), "0.000005"),
        (Usage(tokens_in=0, tokens_out=3, reasoning_tokens_out=2), "0.000024"),
        (Usage(), "0"),
    ],
)
def test_an_answer_costs_what_was_counted(usage: Usage, usd: str) -> None:
    assert cost_usd(model(GPT), usage, 90_000) == Decimal(usd)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (Usage(tokens_in=100_000, cached_tokens_in=50_000, cache_write_tokens_in=40_000), "0.195"),
        (Usage(tokens_in=100_000, cached_tokens_in=90_000, cache_write_tokens_in=40_000), "0.0645"),
        (Usage(tokens_in=200_000, tokens_out=1000), "0.615"),
        (Usage(tokens_in=200_001, tokens_out=1000), "1.222506"),
        (Usage(tokens_in=300_000, cached_tokens_in=100_000, cache_write_tokens_in=100_000), "1.41"),
        (Usage(tokens_in=1_000_001, cached_tokens_in=1), "12.000012"),
    ],
)
def test_the_cache_has_its_prices_and_a_long_request_has_its_own_for_every_token(usage: Usage, usd: str) -> None:
    assert cost_usd(model(CLAUDE), usage, 0) == Decimal(usd)


@pytest.mark.parametrize(
    ("total_ms", "usd"), [(0, "0"), (3_600_000, "0.0135"), (1234.567, "0.000004629626"), (0.001, "0.000000000004")]
)
@pytest.mark.parametrize("usage", [None, Usage(tokens_in=10**6, tokens_out=10**6)])
def test_a_machine_of_ours_costs_what_it_draws_while_it_answers(total_ms: float, usd: str, usage: Usage | None) -> None:
    assert cost_usd(model(MINI), usage, total_ms) == Decimal(usd)
    assert not model(MINI).costs_nothing


def test_time_and_tokens_add_up() -> None:
    rented = GPT.model_copy(update={"usd_per_hour": Decimal(2)})
    assert cost_usd(model(rented), Usage(tokens_in=1000), 1800) == Decimal("0.003")
    assert cost_usd(model(rented), None, 1800) is None


def test_without_a_price_for_cached_tokens_they_cost_like_the_others() -> None:
    plain = GPT.model_copy(update={"cached_input_usd_per_mtok": None})
    assert cost_usd(model(plain), Usage(tokens_in=100, cached_tokens_in=50), 0) == Decimal("0.0002")


@pytest.mark.parametrize(
    ("of", "usage", "why"),
    [
        (None, Usage(tokens_in=1), "no_price"),
        (model(), Usage(tokens_in=1), "no_price"),
        (model(), None, "no_price"),
        (model(GPT), None, "no_usage"),
    ],
)
def test_a_cost_that_cannot_be_known_is_none_and_says_why(of: Model | None, usage: Usage | None, why: str) -> None:
    assert cost_usd(of, usage, 1000) is None
    assert unpriced(of) == why


@pytest.mark.parametrize("of", [model(FREE), model(GPT, free_tier=True), model(free_tier=True)])
@pytest.mark.parametrize("usage", [None, Usage(tokens_in=10**6, tokens_out=10**6)])
def test_what_costs_nothing_costs_zero_whatever_was_counted(of: Model, usage: Usage | None) -> None:
    cost = cost_usd(of, usage, 1000)
    assert cost is not None
    assert cost == 0


@given(PRICES, PRICES, st.none() | PRICES, TOKENS, TOKENS, TOKENS)
def test_a_cost_is_the_exact_sum(
    price_in: Decimal, price_out: Decimal, cached_price: Decimal | None, tokens_in: int, cached: int, tokens_out: int
) -> None:
    price = Price(input_usd_per_mtok=price_in, output_usd_per_mtok=price_out, cached_input_usd_per_mtok=cached_price)
    usage = Usage(tokens_in=tokens_in, cached_tokens_in=cached, tokens_out=tokens_out)
    cost = cost_usd(model(price), usage, 1000)
    hit = min(cached, tokens_in)
    # In units of 1e-10 dollars everything is a whole number.
    unit = 10**4
    exact = (
        (tokens_in - hit) * int(price_in * unit)
        + hit * int((price_in if cached_price is None else cached_price) * unit)
        + tokens_out * int(price_out * unit)
    )
    assert cost is not None
    assert cost * 10**10 == exact


def test_what_a_request_would_cost_counts_its_whole_size() -> None:
    assert expected_cost_usd(model(GPT), 1000, 500) == Decimal("0.006")
    assert expected_cost_usd(model(), 1000, 500) is None
    assert expected_cost_usd(model(MINI), 1000, 500) == Decimal("0.0001875")  # 50 s at 10 tokens a second
