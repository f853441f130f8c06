"""Costs are exact, from our own prices, and None whenever they cannot be known."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.cost import cost_usd, expected_cost_usd
from schemas.policy import Model, Price
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
    assert cost_usd(model(GPT), usage) == Decimal(usd)


def test_without_a_price_for_cached_tokens_they_cost_like_the_others() -> None:
    plain = GPT.model_copy(update={"cached_input_usd_per_mtok": None})
    assert cost_usd(model(plain), Usage(tokens_in=100, cached_tokens_in=50)) == Decimal("0.0002")


@pytest.mark.parametrize(
    ("of", "usage"), [(None, Usage(tokens_in=1)), (model(), Usage(tokens_in=1)), (model(GPT), None), (model(), None)]
)
def test_a_cost_that_cannot_be_known_is_none(of: Model | None, usage: Usage | None) -> None:
    assert cost_usd(of, usage) is None


@pytest.mark.parametrize("of", [model(FREE), model(GPT, free_tier=True), model(free_tier=True)])
@pytest.mark.parametrize("usage", [None, Usage(tokens_in=10**6, tokens_out=10**6)])
def test_what_costs_nothing_costs_zero_whatever_was_counted(of: Model, usage: Usage | None) -> None:
    cost = cost_usd(of, usage)
    assert cost is not None
    assert cost == 0


@given(PRICES, PRICES, st.none() | PRICES, TOKENS, TOKENS, TOKENS)
def test_a_cost_is_the_exact_sum(
    price_in: Decimal, price_out: Decimal, cached_price: Decimal | None, tokens_in: int, cached: int, tokens_out: int
) -> None:
    price = Price(input_usd_per_mtok=price_in, output_usd_per_mtok=price_out, cached_input_usd_per_mtok=cached_price)
    usage = Usage(tokens_in=tokens_in, cached_tokens_in=cached, tokens_out=tokens_out)
    cost = cost_usd(model(price), usage)
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
