"""The table of what was spent."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import get_args

from rich.text import Text

from adapters.bus import JetStreamBus, open_bus
from ops.commands.history import Wanted
from ops.commands.screen import console, print_json, table, usd
from ops.policy_file import load_policy
from ops.policy_in_force import SHIPPED, policy_store, shipped_policy
from ops.prices import resolve
from router.core.ledger import EVENTS as KINDS
from router.core.ledger import By, Entry, Ledger, Row, rows, unknown
from router.errors import LlmbusError
from schemas.policy import Policy
from schemas.policy_problems import one_of
from schemas.work import Unpriced
from subjects import Event, parse
from subjects.streams import EVENTS

CURRENT = "current"
RECORDED = "as recorded"


async def show_cost(url: str, wanted: Wanted, by: str, prices: str | None, *, as_json: bool) -> None:
    """Raises LlmbusError for a grouping that does not exist."""
    grouping = next((each for each in get_args(By) if each == by), None)
    if grouping is None:
        raise LlmbusError(f"nothing to sum up by {by!r}; {one_of(by, get_args(By))}")
    async with open_bus(url, name="llmbus cost") as bus:
        policy, source = await _policy(bus, prices)
        entries = await read_entries(bus, wanted, policy, reprice=prices is not None)
    sums = rows(entries, grouping)
    total = sum(sums.values(), Row())
    lacking = unknown(entries)
    if as_json:
        print_json(_facts(wanted, grouping, source, sums, total, lacking))
    else:
        _show(grouping, source, sums, total, lacking)


async def read_entries(bus: JetStreamBus, wanted: Wanted, policy: Policy, *, reprice: bool) -> list[Entry]:
    """What the wanted requests cost, attempt by attempt."""
    ledger = Ledger(policy, wanted=wanted.holds, reprice=reprice)
    async for letter in bus.read(EVENTS, f"llm.evt.{wanted.pattern}.*"):
        address = parse(letter.subject)
        if isinstance(address, Event) and (kind := KINDS.get(address.kind)):
            ledger.add(kind.decode(letter.data))
    return list(ledger.entries())


async def _policy(bus: JetStreamBus, prices: str | None) -> tuple[Policy, str]:
    """The policy that prices, and the words for its prices."""
    active = await (await policy_store(bus)).active()
    if prices is None:
        return active.policy if active else load_policy(shipped_policy(), SHIPPED), RECORDED
    if prices != CURRENT:
        text, name = _text(Path(prices)), prices
    elif active is not None:
        text, name = active.text, f"policy revision {active.number}"
    else:
        raise LlmbusError("no policy was ever applied, so there are no current prices; name a policy file")
    policy = load_policy(text, name)
    found = await resolve(policy)
    if found is None:
        return policy, name
    return found.fill(policy), f"{name}; {found.version}, {found.as_of}"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LlmbusError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}; give `{CURRENT}` or a policy file"
        ) from None


def _show(by: By, source: str, sums: dict[str | None, Row], total: Row, lacking: Counter[tuple[Unpriced, str]]) -> None:
    out = console()
    if not sums:
        out.print("no request on record matches; look with fewer conditions")
        return
    right = {"justify": "right"}
    heads = ("requests", "attempts", "tokens in", "cached", "tokens out", "answers", "failed", "unknown")
    made = table(by, *((head, right) for head in heads))
    for key, row in [*_ordered(by, sums), *([("total", total)] if len(sums) > 1 else [])]:
        lost = row.billed_unknown + row.wasted_unknown
        made.add_row(
            Text(key or "-", "" if key else "dim"),
            *(f"{each:,}" for each in (row.requests, row.attempts, row.tokens_in, row.cached_tokens_in)),
            f"{row.tokens_out:,}",
            _money(row.billed_usd, row.billed_unknown),
            _money(row.wasted_usd, row.wasted_unknown),
            Text(str(lost), "yellow") if lost else "",
        )
    out.print(made)
    out.print(Text(f"US dollars, prices: {source}", "dim"))
    if total.estimated:
        out.print(Text(f"{_attempts(total.estimated)}: tokens estimated, because the provider did not say", "dim"))
    for line in _remedies(lacking):
        out.print(Text(line, "yellow"))


def _ordered(by: By, sums: dict[str | None, Row]) -> list[tuple[str | None, Row]]:
    """Days as they came, else the dearest first."""
    if by == "day":
        return sorted(sums.items(), key=lambda each: each[0] or "")
    return sorted(
        sums.items(), key=lambda each: (-(each[1].billed_usd + each[1].wasted_usd), -each[1].requests, each[0] or "")
    )


def _money(known: Decimal, unknown: int) -> Text:
    if not unknown:
        return usd(known)
    return Text.assemble(usd(known), (" + ?", "yellow")) if known else usd(None)


def _remedies(lacking: Counter[tuple[Unpriced, str]]) -> Iterable[str]:
    for (why, model), count in sorted(lacking.items()):
        if why == "no_price":
            yield (
                f"{_attempts(count)} of {model}: it has no price. Give `models.{model}` a `price`, or its provider a "
                f"`price_list`; apply that, and `--prices {CURRENT}` counts them"
            )
        else:
            yield f"{_attempts(count)} of {model}: ended before anybody could tell what was used"


def _attempts(count: int) -> str:
    return f"{count:,} attempt{'' if count == 1 else 's'}"


def _facts(
    wanted: Wanted, by: By, source: str, sums: dict[str | None, Row], total: Row,
    lacking: Counter[tuple[Unpriced, str]],
) -> dict[str, object]:  # fmt: skip
    return {
        "by": by,
        "since": wanted.since and wanted.since.isoformat(),
        "until": wanted.until and wanted.until.isoformat(),
        "prices": source,
        "rows": [{by: key, **asdict(row)} for key, row in _ordered(by, sums)],
        "total": asdict(total),
        "unknown": [{"model": model, "why": why, "attempts": count} for (why, model), count in sorted(lacking.items())],
    }
