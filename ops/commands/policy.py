"""`llmbus policy`: check, apply, show and roll back what decides."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ops.commands.options import DEFAULT_URL, Group, Json, NatsUrl, run_quietly

if TYPE_CHECKING:
    from ops.policy_store import PolicyStore, Revision

app = typer.Typer(
    cls=Group, help="Check, apply, show and roll back the policy.", no_args_is_help=True, rich_markup_mode=None
)

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A policy in YAML.", exists=True, dir_okay=False, readable=True)
]


@app.command()
def check(file: File, as_json: Json = False) -> None:
    """Say of everything wrong in FILE where it stands and what would be right. Needs no bus."""
    from ops.commands.screen import print_json
    from ops.policy_file import PolicyError, load_policy

    try:
        policy = load_policy(_text(file), str(file))
    except PolicyError as error:
        if not as_json:
            raise
        print_json({"ok": False, "problems": [problem._asdict() for problem in error.problems]})
        raise typer.Exit(1) from None
    counts = {part: len(getattr(policy, part)) for part in ("nodes", "models", "capabilities", "tasks", "agents")}
    if as_json:
        print_json({"ok": True, **counts})
    else:
        typer.echo(f"{file} is right: " + ", ".join(f"{count} {part}" for part, count in counts.items()))


@app.command()
def apply(
    file: File,
    note: Annotated[str, typer.Option(help="Why, for the history.")] = "",
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Make FILE the policy of the bus; routers take it without a restart.

    Models without a price get the one of today; applied again, a file whose prices have changed is a new revision.
    """
    from ops.commands.price_table import price_remedy, unpriced_models

    async def run() -> "tuple[Revision, bool]":
        async with _store(nats_url, make=True) as store:
            before = {each.number for each in await store.history()}
            revision = await store.apply(_text(file), str(file), note=note or file.name)
            return revision, revision.number not in before

    revision, new = run_quietly(run())
    missing = unpriced_models(revision)
    words = f"revision {revision.number} is {'active' if new else 'active already'}"
    if missing:
        words += f"; no price is known of {', '.join(missing)}. {price_remedy()}"
    _say({"revision": revision.number, "new": new, "no_price": missing}, words, as_json)


@app.command()
def show(
    revision: Annotated[int | None, typer.Argument(metavar="N", help="Its number; the active one without it.")] = None,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Print a revision as it was written."""
    from ops.commands.screen import print_json
    from router.errors import LlmbusError

    async def run() -> None:
        async with _store(nats_url) as store:
            kept = await store.history()
        found = next((each for each in kept if (each.active if revision is None else each.number == revision)), None)
        if found is None:
            known = f"there are {', '.join(str(each.number) for each in kept)}" if kept else "none was ever applied"
            raise LlmbusError(
                f"the policy has no {'active revision' if revision is None else f'revision {revision}'}; {known}"
            )
        if as_json:
            print_json({"revision": found.number, "active": found.active, "text": found.text})
        else:
            typer.echo(found.text, nl=False)

    run_quietly(run())


@app.command()
def prices(
    revision: Annotated[int | None, typer.Argument(metavar="N", help="Its number; the active one without it.")] = None,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Show what each model costs, and where that was looked up."""
    from ops.commands.price_table import show_prices
    from router.errors import LlmbusError

    async def run() -> "Revision | None":
        async with _store(nats_url) as store:
            return await (store.active() if revision is None else store.get(revision))

    found = run_quietly(run())
    if found is None:
        raise LlmbusError("no policy was ever applied; `llmbus policy apply FILE` makes one active")
    show_prices(found, as_json=as_json)


@app.command()
def history(nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False) -> None:
    """List every revision, the newest last."""
    from rich.text import Text

    from ops.commands.screen import console, print_json, table

    async def run() -> None:
        async with _store(nats_url) as store:
            kept = await store.history()
        if as_json:
            print_json(
                [
                    {"revision": e.number, "active": e.active, "applied": e.created.isoformat(), "note": e.note,
                     "digest": e.digest}
                    for e in kept
                ]
            )  # fmt: skip
            return
        made = table(("revision", {"justify": "right"}), "", "applied", "digest", ("note", {"overflow": "fold"}))
        for each in kept:
            when = each.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")
            active = Text("active", "green") if each.active else ""
            made.add_row(str(each.number), active, when, each.digest, each.note)
        console().print(made)

    run_quietly(run())


@app.command()
def rollback(
    revision: Annotated[int, typer.Argument(metavar="N", help="Its number in the history.")],
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Make an earlier revision the active one again."""

    async def run() -> None:
        async with _store(nats_url) as store:
            await store.rollback(revision)

    run_quietly(run())
    _say({"revision": revision}, f"revision {revision} is active", as_json)


@asynccontextmanager
async def _store(url: str, *, make: bool = False) -> "AsyncIterator[PolicyStore]":
    from adapters.bus import open_bus
    from ops.policy_in_force import policy_store

    async with open_bus(url, name="llmbus policy", make=make) as bus:
        yield await policy_store(bus)


def _text(file: Path) -> str:
    from router.errors import LlmbusError

    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LlmbusError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _say(facts: dict[str, object], words: str, as_json: bool) -> None:
    from ops.commands.screen import print_json

    if as_json:
        print_json(facts)
    else:
        typer.echo(words)
