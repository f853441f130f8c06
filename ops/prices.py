"""Looks up in genai-prices what the models of a policy cost that the policy gives no price.

It is done once, when a revision is stored, and in a process of its own: the library costs 23 MB of memory, which a
router that runs for months need not carry. `python -m ops.prices` is that process: a policy as JSON on stdin, its table
on stdout.
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from router.errors import LlmbusError
from schemas.policy import Model, Policy, Price, PriceTier
from schemas.prices import PriceTable

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice

FIELDS: Final = {
    "input_usd_per_mtok": "input_mtok",
    "output_usd_per_mtok": "output_mtok",
    "cached_input_usd_per_mtok": "cache_read_mtok",
    "cache_write_input_usd_per_mtok": "cache_write_mtok",
}
"""Our names of prices, and theirs."""

UNCOUNTED: Final = frozenset({"requests_kcount", "output_reasoning_mtok", "output_citation_mtok"})
"""Charges of every answer that our usage does not count: with one of these a price would say too little."""

LOOK_UP: Final = ("-P", "-m", "ops.prices")

HOSTED: Final = frozenset({"anthropic", "cohere", "gemini"})
"""Dialects that only their maker's models speak."""


class PriceLookupError(LlmbusError):
    """The prices could not be looked up."""


async def resolve(policy: Policy) -> PriceTable | None:
    """The prices of today of all models that have none; None when every model has one. Raises PriceLookupError."""
    if not any(_lacking(policy)):
        return None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *LOOK_UP),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, errors = await process.communicate(policy.model_dump_json().encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = errors.decode(errors="replace").strip().rpartition("\n")[2] or f"exit code {process.returncode}"
        raise PriceLookupError(
            f"prices cannot be looked up: {said}; install llmbus again with all it needs, or give every model a `price`"
        )
    return PriceTable.decode(out)


def look_up(policy: Policy, at: datetime) -> PriceTable:
    """The prices at a time; models that genai-prices does not know are left out."""
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    edition = f"genai-prices {version('genai-prices')}"
    source = f"{edition}, {at.date()}"
    found: dict[str, Price] = {}
    for name, model in _lacking(policy):
        info = _find(snapshot, policy, model)
        if info is not None and (price := _price(info, at, source, embeds=model.embeds)) is not None:
            found[name] = price
    return PriceTable(version=edition, as_of=at.date(), models=found)


def _lacking(policy: Policy) -> Iterator[tuple[str, Model]]:
    for name, model in policy.models.items():
        if model.price is None and policy.providers[model.provider].dialect != "loopback":
            yield name, model


def _find(snapshot: "DataSnapshot", policy: Policy, model: Model) -> "ModelInfo | None":
    """The model in the price list of its provider; never in another's, whatever its name."""
    for price_list, url in _price_lists(snapshot, policy, model):
        with suppress(LookupError):
            return snapshot.find_provider_model(model.backend, None, price_list, url)[1]
    return None


def _price_lists(snapshot: "DataSnapshot", policy: Policy, model: Model) -> Iterator[tuple[str | None, str | None]]:
    """The names or addresses of whose prices may hold."""
    provider = policy.providers[model.provider]
    urls = {policy.nodes[node].urls.get(model.provider, provider.url) for node in model.nodes}
    if provider.price_list is not None:
        yield provider.price_list, None
    elif urls != {None}:
        # A server of ours may carry any name and speak any dialect.
        if len(urls) == 1:
            yield None, urls.pop()
    elif provider.dialect in HOSTED:
        yield provider.dialect, None
    elif any(known.id == model.provider for known in snapshot.providers):
        yield model.provider, None


def _price(info: "ModelInfo", at: datetime, source: str, *, embeds: bool = False) -> Price | None:
    """None for what is not told by tokens in and out alone."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    by_time = [info.get_prices(midnight + timedelta(minutes=30 * slot)) for slot in range(48)]
    # Some charge more at certain hours; what is booked is then the most it can have been.
    dearest = max(by_time, key=lambda price: _rates(price, 0).get("output_usd_per_mtok", Decimal(0)))
    base = _rates(dearest, 0)
    needed = {"input_usd_per_mtok"} if embeds else {"input_usd_per_mtok", "output_usd_per_mtok"}
    if not needed <= base.keys() or not UNCOUNTED.isdisjoint(vars(dearest)):
        return None
    return Price(
        **base,
        above=tuple(PriceTier(above_tokens_in=start, **_rates(dearest, start + 1)) for start in _tier_starts(dearest)),
        source=source if all(price == dearest for price in by_time) else f"{source}, peak hours",
    )


def _rates(price: "ModelPrice", tokens_in: int) -> dict[str, Any]:
    """What tokens cost in a request with that much input."""
    from genai_prices.types import TieredPrices

    found = {}
    for ours, theirs in FIELDS.items():
        rate = getattr(price, theirs)
        if isinstance(rate, TieredPrices):
            reached = [tier.price for tier in rate.tiers if tokens_in > tier.start]
            rate = reached[-1] if reached else rate.base
        if rate is not None:
            found[ours] = rate
    return found


def _tier_starts(price: "ModelPrice") -> list[int]:
    from genai_prices.types import TieredPrices

    rates = (getattr(price, theirs) for theirs in FIELDS.values())
    return sorted({tier.start for rate in rates if isinstance(rate, TieredPrices) for tier in rate.tiers})


if __name__ == "__main__":
    sys.stdout.buffer.write(look_up(Policy.model_validate_json(sys.stdin.buffer.read()), datetime.now(UTC)).encode())
