"""`llmbus key`: who may ask an HTTP edge, and how much."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.commands.options import DEFAULT_URL, Group, Json, NatsUrl, run_quietly

if TYPE_CHECKING:
    from adapters.bus import JetStreamBus
    from ops.client_keys import NewKey
    from schemas.client import ApiClient, ApiKey, ClientLimits

app = typer.Typer(
    cls=Group, help="Keys and limits of the HTTP edge's clients.", no_args_is_help=True, rich_markup_mode=None
)

MOST_USD = 1_000_000_000
Name = Annotated[str, typer.Argument(metavar="NAME", help="As the client stands in subjects and in the ledger.")]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, from `llmbus key list`.")]
Requests = Annotated[int | None, typer.Option("--requests-per-minute", metavar="N", min=1, help="Of all its keys.")]
Tokens = Annotated[int | None, typer.Option("--tokens-per-minute", metavar="N", min=1, help="Of prompts and answers.")]
Concurrent = Annotated[
    int | None, typer.Option("--concurrent", metavar="N", min=1, help="Requests without a reply yet.")
]
Usd = Annotated[
    float | None,
    typer.Option(
        "--usd-per-day",
        metavar="USD",
        min=0,
        max=MOST_USD,
        help="By UTC; 0: only models that cost nothing. Without a known price none answers.",
    ),
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option("--capability", metavar="NAME", help="The only ones that it may use; may be given several times."),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="NAME", help="The only ones that may answer it; may be given several times."),
]


@app.command()
def create(
    name: Name,
    note: Annotated[str, typer.Option(help="Whose it is, for the list.")] = "",
    requests: Requests = None, tokens: Tokens = None, concurrent: Concurrent = None, usd: Usd = None,
    capability: Capabilities = None, model: Models = None,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Make a key for the client NAME and print it: only now, for nothing but a digest is kept.

    A client may have several keys; its limits hold for all of them together. Without any it is not limited.
    """

    async def run() -> "NewKey":
        from ops.client_keys import create

        async with _bus(nats_url) as bus:
            return await create(
                bus, name, note=note, changes=_changes(requests, tokens, concurrent, usd, capability, model)
            )

    _show_once(run_quietly(run()), as_json)


@app.command("list")
def list_keys(nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False) -> None:
    """List clients, their keys without the secrets, and their limits."""
    from ops.commands.screen import console, print_json, table

    async def run() -> "tuple[list[ApiClient], int]":
        from adapters.key_ring import read_clients

        async with _bus(nats_url) as bus:
            return [client for client, _ in (await read_clients(bus)).values()], bus.now_ms()

    clients, now_ms = run_quietly(run())
    if as_json:
        print_json([_facts(client, now_ms) for client in clients])
        return
    if not clients:
        typer.echo("there is no key; `llmbus key create NAME` makes one")
        return
    made = table("client", "key", "made", "", ("limits", {"overflow": "fold"}), ("note", {"overflow": "fold"}))
    for client in clients:
        words = _limits(client.limits)
        for key in client.keys:
            made.add_row(client.name, key.id, _when(key.created_ms), _state(key, now_ms), words, client.note)
    console().print(made)


@app.command()
def limit(
    name: Name,
    lift: Annotated[bool, typer.Option("--lift", help="First lift all limits that it has.")] = False,
    requests: Requests = None, tokens: Tokens = None, concurrent: Concurrent = None, usd: Usd = None,
    capability: Capabilities = None, model: Models = None,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Give the client NAME other limits; those not named stay as they are. Edges go by them at once."""

    async def run() -> "ApiClient":
        from ops.client_keys import limit

        async with _bus(nats_url) as bus:
            changes = _changes(requests, tokens, concurrent, usd, capability, model)
            return await limit(bus, name, lift=lift, changes=changes)

    client = run_quietly(run())
    _say({"client": client.name, "limits": client.limits}, f"{client.name}: {_limits(client.limits)}", as_json)


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(metavar="ID|NAME", help="A key's id, or a client: all of its keys.")],
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """End a key; within a second no edge takes it. What it asked before is answered."""

    async def run() -> "tuple[ApiClient, list[str]]":
        from ops.client_keys import revoke

        async with _bus(nats_url) as bus:
            return await revoke(bus, which)

    client, ended = run_quietly(run())
    words = f"{client.name}: {', '.join(ended)} ended" if ended else f"{client.name}: had ended already"
    _say({"client": client.name, "ended": ended}, words, as_json)


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[str, typer.Option(help="How long the old one is still taken, e.g. 90s, 15m, 24h.")] = "0s",
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Make a new key in place of another, for the same client, and print it: only now."""
    overlap_ms = _duration_ms(overlap)

    async def run() -> "NewKey":
        from ops.client_keys import rotate

        async with _bus(nats_url) as bus:
            return await rotate(bus, key_id, overlap_ms=overlap_ms)

    _show_once(run_quietly(run()), as_json)


@asynccontextmanager
async def _bus(url: str) -> "AsyncIterator[JetStreamBus]":
    from adapters.bus import open_bus

    async with open_bus(url, name="llmbus key", make=True) as bus:
        yield bus


def _changes(
    requests: int | None, tokens: int | None, concurrent: int | None, usd: float | None,
    capabilities: list[str] | None, models: list[str] | None,
) -> dict[str, Any]:  # fmt: skip
    said = {
        "requests_per_minute": requests, "tokens_per_minute": tokens, "concurrent": concurrent,
        "usd_per_day": None if usd is None else str(usd), "capabilities": capabilities or None,
        "models": models or None,
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def _show_once(made: "NewKey", as_json: bool) -> None:
    """The key alone on stdout, so that it can be taken up without being seen."""
    if as_json:
        _say({"client": made.client.name, "id": made.id, "key": made.text}, "", as_json)
        return
    typer.echo(f"key {made.id} of {made.client.name}: {_limits(made.client.limits)}. It is shown this once:", err=True)
    typer.echo(made.text)


def _facts(client: "ApiClient", now_ms: int) -> dict[str, object]:
    keys = [
        {"id": key.id, "created": _at(key.created_ms).isoformat(), "ends": key.ends_ms and _at(key.ends_ms).isoformat(),
         "state": _state(key, now_ms)}
        for key in client.keys
    ]  # fmt: skip
    return {"client": client.name, "note": client.note, "limits": client.limits, "keys": keys}


def _limits(limits: "ClientLimits") -> str:
    said = (
        limits.requests_per_minute and f"{limits.requests_per_minute} requests/min",
        limits.tokens_per_minute and f"{limits.tokens_per_minute} tokens/min",
        limits.concurrent and f"{limits.concurrent} at a time",
        None if limits.usd_per_day is None else f"${limits.usd_per_day:f}/day",
        limits.capabilities and f"only {', '.join(limits.capabilities)}",
        limits.models and f"only by {', '.join(limits.models)}",
    )
    return ", ".join(words for words in said if words) or "no limits"


def _state(key: "ApiKey", now_ms: int) -> str:
    if key.ends_ms is None:
        return "live"
    return "ended" if key.ends_ms <= now_ms else f"ends {_when(key.ends_ms)}"


def _when(time_ms: int) -> str:
    return _at(time_ms).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _at(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def _duration_ms(text: str) -> int:
    """Raises typer.BadParameter."""
    import re
    from datetime import timedelta

    from ops.commands.history import UNITS

    if (said := re.fullmatch(r"(\d{1,6})([smhd])", text)) is None:
        raise typer.BadParameter(f"{text!r} is no duration; say 90s, 15m, 24h or 7d", param_hint="--overlap")
    return round(timedelta(**{UNITS[said[2]]: int(said[1])}).total_seconds() * 1000)


def _say(facts: dict[str, object], words: str, as_json: bool) -> None:
    from ops.commands.screen import print_json

    if as_json:
        print_json(facts)
    else:
        typer.echo(words)
