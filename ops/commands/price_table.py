"""The prices of a policy revision: what each model costs, and where that was looked up."""

from collections.abc import Iterator
from decimal import Decimal

from rich.text import Text

from ops.commands.screen import console, print_json, table
from ops.policy_store import Revision
from schemas.policy import Model, TokenPrice

OWN = "policy"


def show_prices(revision: Revision, *, as_json: bool) -> None:
    if as_json:
        print_json(_facts(revision))
        return
    right = {"justify": "right"}
    heads = ("input", "cached", "cache write", "output", "an hour")
    made = table("model", "backend", *((head, right) for head in heads), ("from", {"min_width": 9}))
    edition = f"{revision.prices.version}, {revision.prices.as_of}" if revision.prices else None
    for name, model in revision.policy.models.items():
        for row in _rows(name, model, edition):
            made.add_row(*row)
    out = console()
    out.print(made)
    looked_up = f"; looked up in {edition}" if edition else ""
    out.print(Text(f"policy revision {revision.number}; US dollars, of tokens per million{looked_up}", "dim"))
    if missing := unpriced_models(revision):
        out.print(
            Text(f"no price, so what they answer has no known cost: {', '.join(missing)}. {price_remedy()}", "yellow")
        )


def unpriced_models(revision: Revision) -> list[str]:
    return [name for name, model in revision.policy.models.items() if model.price is None and not model.free_tier]


def price_remedy() -> str:
    return "Give each a `price`, or its provider a `price_list`, and apply that"


def _rows(name: str, model: Model, edition: str | None) -> Iterator[tuple[Text | str, ...]]:
    price = model.price
    if price is None:
        unknown = Text("free tier" if model.free_tier else "unknown", "yellow")
        yield (name, model.backend, *[Text("?", "yellow")] * 4, "", unknown)
        return
    source = price.source or OWN
    if edition and source.startswith(edition):
        source = f"looked up{source.removeprefix(edition)}"
    yield (name, model.backend, *_usd(price), _plain(price.usd_per_hour), "free tier" if model.free_tier else source)
    for tier in price.above:
        yield ("", Text(f"above {tier.above_tokens_in:,} in", "dim"), *_usd(tier), "", "")


def _usd(price: TokenPrice) -> tuple[str, ...]:
    cached, written = price.cached_input_usd_per_mtok, price.cache_write_input_usd_per_mtok
    return (_plain(price.input_usd_per_mtok), _plain(cached), _plain(written), _plain(price.output_usd_per_mtok))


def _plain(usd: Decimal | None) -> str:
    return "" if usd is None else f"{usd.normalize():f}"


def _facts(revision: Revision) -> dict[str, object]:
    return {
        "revision": revision.number,
        "looked_up": revision.prices
        and {"version": revision.prices.version, "as_of": revision.prices.as_of.isoformat()},
        "models": {
            name: {
                "provider": model.provider,
                "backend": model.backend,
                "free_tier": model.free_tier,
                "price": model.price,
            }
            for name, model in revision.policy.models.items()
        },
    }
