"""Prices are looked up in the provider's own list, never in another's, and cost what genai-prices says they cost."""

import warnings
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices import calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from ops import prices
from ops.policy_file import load_policy
from ops.policy_in_force import SHIPPED, shipped_policy
from ops.prices import PriceLookupError, look_up, resolve
from router.core.cost import cost_usd
from schemas.policy import Policy, Price
from schemas.prices import PriceTable
from schemas.work import Usage

AT = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
OPENAI, GOOGLE = "https://api.openai.com/v1", "https://generativelanguage.googleapis.com/v1beta/openai"
KNOWN = [(provider.id, model.id) for provider in get_snapshot().providers for model in provider.models]


def policy(
    backend: str, provider: dict[str, Any], name: str = "somebody", urls: dict[str, str] | None = None, **model: Any
) -> Policy:
    size = {"context_tokens": 10**7, "quality": 0.5, "tokens_per_s": 10}
    return Policy.model_validate(
        {
            "version": 1,
            "nodes": {"cloud": {"urls": urls or {}}, "other": {}},
            "providers": {name: provider},
            "models": {"m": {"nodes": ["cloud"], "provider": name, "backend": backend, **size, **model}},
            "capabilities": {"chat": {"models": ["m"]}},
            "default": {"models": ["m"]},
        }
    )


def input_usd(of: Policy) -> Decimal | None:
    models = look_up(of, AT).models
    return models["m"].input_usd_per_mtok if models else None


@pytest.mark.parametrize(
    ("backend", "provider", "name", "usd"),
    [
        ("gpt-4.1", {"dialect": "openai", "url": OPENAI}, "somebody", "2"),
        ("gemini-2.5-flash", {"dialect": "openai", "url": GOOGLE}, "gemini", "0.3"),
        ("claude-sonnet-4-5", {"dialect": "openai", "url": "https://api.anthropic.com/v1"}, "claude", "3"),
        ("gpt-4.1", {"dialect": "openai"}, "openai", "2"),
        ("gpt-4.1", {"dialect": "openai", "url": "http://proxy:4000", "price_list": "openai"}, "proxy", "2"),
    ],
)
def test_the_url_says_whose_prices_hold_and_without_one_the_name(
    backend: str, provider: dict[str, Any], name: str, usd: str
) -> None:
    assert input_usd(policy(backend, provider, name)) == Decimal(usd)


@pytest.mark.parametrize(
    ("backend", "provider", "name"),
    [
        ("gpt-4.1", {"dialect": "openai", "url": "http://127.0.0.1:8000/v1"}, "openai"),
        ("gpt-4.1", {"dialect": "openai"}, "my-openai-compatible"),
        ("gpt-4.1", {"dialect": "openai", "url": GOOGLE}, "openai"),
        ("gpt-4.1", {"dialect": "openai", "url": OPENAI, "price_list": "no-such-list"}, "openai"),
        ("no-such-model", {"dialect": "openai", "url": OPENAI}, "openai"),
        ("qwen3:14b", {"dialect": "ollama", "url": "http://127.0.0.1:11434"}, "ollama"),
        ("gpt-4.1", {"dialect": "loopback"}, "openai"),
    ],
)
def test_what_is_not_in_the_providers_own_list_has_no_price(backend: str, provider: dict[str, Any], name: str) -> None:
    assert input_usd(policy(backend, provider, name)) is None


def test_a_model_that_runs_at_home_and_away_has_no_one_price() -> None:
    provider = {"dialect": "openai", "url": OPENAI}
    at_home = {"somebody": "http://127.0.0.1:8000"}
    assert input_usd(policy("gpt-4.1", provider, urls=at_home)) is None
    assert input_usd(policy("gpt-4.1", provider, urls=at_home, nodes=["cloud", "other"])) is None
    assert input_usd(policy("gpt-4.1", provider, nodes=["cloud", "other"])) == 2


def test_prices_are_those_of_the_day() -> None:
    of = policy("claude-opus-4-6", {"dialect": "openai", "price_list": "anthropic"})
    without_surcharge = datetime(2026, 3, 13, tzinfo=UTC)
    before, after = look_up(of, without_surcharge - timedelta(seconds=1)), look_up(of, without_surcharge)
    assert (before.models["m"].above != (), after.models["m"].above) == (True, ())
    assert (after.as_of.isoformat(), after.models["m"].source) == ("2026-03-13", f"{after.version}, 2026-03-13")


def test_where_hours_have_their_own_prices_the_dearest_is_booked_and_said() -> None:
    found = look_up(policy("deepseek-chat", {"dialect": "openai", "price_list": "deepseek"}), AT).models["m"]
    info = get_snapshot().find_provider_model("deepseek-chat", None, "deepseek", None)[1]
    hourly = [info.get_prices(AT.replace(hour=hour)).output_mtok for hour in range(24)]
    assert len(set(hourly)) == 2
    assert found.output_usd_per_mtok == max(each for each in hourly if isinstance(each, Decimal))
    assert found.source is not None
    assert found.source.endswith("peak hours")


@given(st.sampled_from(KNOWN), *[st.integers(0, 600_000)] * 4, st.booleans())
def test_a_call_costs_what_genai_prices_says(
    known: tuple[str, str], plain: int, cached: int, written: int, tokens_out: int, edge: bool
) -> None:
    provider_id, backend = known
    of = policy(backend, {"dialect": "openai", "price_list": provider_id})
    table = look_up(of, AT)
    if "m" not in table.models or "peak" in (table.models["m"].source or ""):
        return
    starts = [tier.above_tokens_in for tier in table.models["m"].above]
    if edge and starts:
        plain, cached, written = starts[-1], 0, 0
    usage = Usage(
        tokens_in=plain + cached + written,
        tokens_out=tokens_out,
        cached_tokens_in=cached,
        cache_write_tokens_in=written,
    )
    theirs = TheirUsage(
        input_tokens=usage.tokens_in,
        output_tokens=tokens_out,
        cache_read_tokens=cached,
        cache_write_tokens=written,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = calc_price(theirs, backend, provider_id=provider_id, genai_request_timestamp=AT).total_price
    assert cost_usd(table.fill(of).models["m"], usage, 0) == expected


def test_most_of_what_genai_prices_knows_is_taken_over() -> None:
    found = [look_up(policy(backend, {"dialect": "openai", "price_list": of}), AT).models for of, backend in KNOWN]
    assert sum("m" in models for models in found) > 0.8 * len(KNOWN)


async def test_the_shipped_policy_has_a_price_for_every_model() -> None:
    shipped = load_policy(shipped_policy(), SHIPPED)
    table = await resolve(shipped)
    assert table is not None
    assert table.models.keys() == {"gemini", "gpt", "claude", "command", "embedding-openai", "embedding-gemini"}
    assert table.version.startswith("genai-prices ")
    filled = table.fill(shipped)
    assert all(model.price is not None for model in filled.models.values())
    assert filled.models["claude"].price is not None
    assert filled.models["claude"].price.above[0].above_tokens_in == 200_000
    assert filled.models["gemini"].costs_nothing
    assert shipped.models["gpt"].price is None


async def test_nothing_is_looked_up_when_every_model_has_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "LOOK_UP", ("-c", "raise SystemExit(1)"))
    free = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}
    assert await resolve(policy("gpt-4.1", {"dialect": "openai", "url": OPENAI}, price=free)) is None


async def test_a_look_up_that_fails_is_an_error_and_not_a_missing_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "LOOK_UP", ("-c", "import sys; sys.exit('가격표가 없다')"))
    with pytest.raises(PriceLookupError, match="가격표가 없다"):
        await resolve(policy("gpt-4.1", {"dialect": "openai", "url": OPENAI}))


def test_the_policys_own_price_always_stands() -> None:
    own = Price(input_usd_per_mtok=Decimal(1), output_usd_per_mtok=Decimal(1))
    of = policy("gpt-4.1", {"dialect": "openai", "url": OPENAI}, price=own.model_dump(exclude_unset=True))
    assert look_up(of, AT).models == {}
    table = PriceTable(version="v", as_of=AT.date(), models={"m": own.model_copy(update={"source": "v"})})
    assert table.fill(of).models["m"].price == own


def test_a_table_travels_unchanged() -> None:
    table = look_up(policy("claude-sonnet-4-5", {"dialect": "openai", "price_list": "anthropic"}), AT)
    assert table.models
    assert PriceTable.decode(table.encode()) == table
