"""What a request may come to, before anybody has answered it: tokens, and money at the dearest model in reach. Pure."""

from collections.abc import Iterable
from decimal import Decimal

from router.core.candidates import TYPICAL_TOKENS_OUT
from router.core.cost import NOTHING, expected_cost_usd
from router.core.routes import choose_route
from router.core.tokens import estimate_request_tokens, estimate_tokens
from schemas.client import Weight
from schemas.decision import Refuse
from schemas.policy import Policy
from schemas.request import LlmRequest


def weigh(request: LlmRequest, capability: str, policy: Policy, allowed: Iterable[str] | None = None) -> Weight:
    """Of one attempt. A model without a price costs nothing here: whoever sets a budget does not reach it."""
    if request.embed is not None:
        tokens_in, tokens_out = estimate_tokens(request.embed), 0
    else:
        tokens_in, tokens_out = estimate_request_tokens(request), request.preferences.max_tokens or TYPICAL_TOKENS_OUT
    chosen = choose_route(request, capability, policy, tokens_in)
    if isinstance(chosen, Refuse):
        return Weight(tokens_in + tokens_out, NOTHING)
    special = (name for kind in policy.failure_chains for name in policy.fallbacks[kind])
    names = {*chosen.models, *chosen.chain, *special}
    if allowed is not None:
        names &= set(allowed)
    costs = (expected_cost_usd(policy.models[name], tokens_in, tokens_out) for name in names)
    usd = max((cost for cost in costs if cost is not None), default=NOTHING)
    own = request.constraints.max_cost_usd
    return Weight(tokens_in + tokens_out, usd if own is None else min(usd, Decimal(own)))
