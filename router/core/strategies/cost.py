"""The cheapest answer; an unknown price counts as the highest."""

from router.core.cost import expected_cost_usd
from router.core.strategies.base import Option

UNKNOWN_USD = 1e6


def cost(option: Option) -> float:
    usd = expected_cost_usd(option.model, option.tokens_in, option.tokens_out)
    return -UNKNOWN_USD if usd is None else -float(usd)
