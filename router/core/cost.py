"""What an attempt costs, by the prices of the policy; None when it cannot be known, never 0 by default."""

from decimal import Decimal
from typing import Final

from schemas.policy import Model, Price, TokenPrice
from schemas.work import Unpriced, Usage

MILLION: Final = Decimal(1_000_000)
HOUR_MS: Final = Decimal(3_600_000)
NOTHING: Final = Decimal(0)
PICO_USD: Final = Decimal("1e-12")


def cost_usd(model: Model | None, usage: Usage | None, total_ms: float) -> Decimal | None:
    """The price of the tokens and of the time; of tokens exact, of time to the trillionth of a dollar."""
    if model is None:
        return None
    if model.costs_nothing:
        return NOTHING
    if model.price is None:
        return None
    tokens = _tokens_usd(model.price, usage)
    return None if tokens is None else tokens + _time_usd(model.price, total_ms)


def unpriced(model: Model | None) -> Unpriced:
    """Why there is no cost."""
    return "no_price" if model is None or model.price is None else "no_usage"


def expected_cost_usd(model: Model, tokens_in: int, tokens_out: int) -> Decimal | None:
    """What a request of that size would cost."""
    usage = Usage(tokens_in=tokens_in, tokens_out=tokens_out)
    return cost_usd(model, usage, tokens_out / model.tokens_per_s * 1000)


def _tokens_usd(price: Price, usage: Usage | None) -> Decimal | None:
    if price.tokens_cost_nothing:
        return NOTHING
    if usage is None:
        return None
    reached = (tier for tier in price.above if usage.tokens_in > tier.above_tokens_in)
    rates: TokenPrice = max(reached, key=lambda tier: tier.above_tokens_in, default=price)
    cached = min(usage.cached_tokens_in, usage.tokens_in)
    written = min(usage.cache_write_tokens_in, usage.tokens_in - cached)
    return (
        (usage.tokens_in - cached - written) * rates.input_usd_per_mtok
        + cached * _or_input(rates.cached_input_usd_per_mtok, rates)
        + written * _or_input(rates.cache_write_input_usd_per_mtok, rates)
        + usage.tokens_out * rates.output_usd_per_mtok
    ) / MILLION


def _or_input(price_usd: Decimal | None, rates: TokenPrice) -> Decimal:
    return rates.input_usd_per_mtok if price_usd is None else price_usd


def _time_usd(price: Price, total_ms: float) -> Decimal:
    if not price.usd_per_hour:
        return NOTHING
    # From the digits that stand in the record, so that it comes out the same again.
    return (price.usd_per_hour * Decimal(str(total_ms)) / HOUR_MS).quantize(PICO_USD)
