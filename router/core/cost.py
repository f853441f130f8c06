"""What an attempt costs, by our own price table; None when it cannot be known, never 0 by default."""

from decimal import Decimal

from schemas.policy import Model
from schemas.work import Usage

MILLION = Decimal(1_000_000)
NOTHING = Decimal(0)


def cost_usd(model: Model | None, usage: Usage | None) -> Decimal | None:
    """Exact, of what the provider counted."""
    if model is None:
        return None
    if model.costs_nothing:
        return NOTHING
    price = model.price
    if price is None or usage is None:
        return None
    cached = min(usage.cached_tokens_in, usage.tokens_in)
    cached_price = (
        price.input_usd_per_mtok if price.cached_input_usd_per_mtok is None else price.cached_input_usd_per_mtok
    )
    return (
        (usage.tokens_in - cached) * price.input_usd_per_mtok
        + cached * cached_price
        + usage.tokens_out * price.output_usd_per_mtok
    ) / MILLION


def expected_cost_usd(model: Model, tokens_in: int, tokens_out: int) -> Decimal | None:
    """What a request of that size would cost."""
    return cost_usd(model, Usage(tokens_in=tokens_in, tokens_out=tokens_out))
