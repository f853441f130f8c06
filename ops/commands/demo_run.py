"""The demo: starts a stack, asks as the services do, shows answers, one request's life, and the verification."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from adapters.client import Client, RequestFailedError
from ops.commands import demo_screen
from ops.commands.children import Child
from ops.commands.demo_screen import Asked
from ops.commands.history import Wanted, decisions, life
from ops.commands.screen import print_json
from ops.commands.stack import Stack, stack
from ops.commands.up_screen import Screen, show_nodes
from ops.commands.verify import Verified, verify
from router.errors import LlmbusError
from schemas.reply import Reply
from schemas.request import LlmRequest

AT_ONCE = 16
DEADLINE_MS = 50_000
NOT_SENT = frozenset({"capability", "lang", "source", "license", "expect"})


async def run_demo(store: Path, router: Child, *, as_json: bool) -> None:
    rows = [json.loads(line) for line in files("ops").joinpath("demo/prompts.jsonl").read_text("utf-8").splitlines()]
    screen = Screen(quiet=as_json)
    async with stack(store, router, screen.say) as running:
        stood_in = await show_nodes(screen, running)
        screen.console.print(demo_screen.notice(stood_in, len(running.revision.policy.models)))
        begun = time.monotonic()
        found = await _asked(screen, running, rows)
        took_s = time.monotonic() - begun
        verified = await verify(running.bus, Wanted())
        shown = await life(running.bus, _telling(found))
    if as_json:
        print_json(demo_screen.facts(found, verified, took_s))
    else:
        demo_screen.show(screen.console, found, shown, verified, took_s)
    screen.console.print("everything that was started is stopped", style="dim")
    _check(found, verified)


async def _asked(screen: Screen, running: Stack, rows: list[dict[str, Any]]) -> list[Asked]:
    """Ask all prompts, each service under its own name; in the order of the file."""
    agents = list(dict.fromkeys(row["agent"] for row in rows))
    bar = Progress(
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=screen.console, disable=not screen.console.is_terminal,
    )  # fmt: skip
    async with AsyncExitStack() as exits:
        clients = {name: await exits.enter_async_context(Client.connect(running.url, name)) for name in agents}
        progress = exits.enter_context(bar)
        line = progress.add_task(f"{len(rows)} prompts from {len(agents)} services", total=len(rows))
        places = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            asking = [
                tasks.create_task(_ask(clients[row["agent"]], row, places, lambda: progress.advance(line)))
                for row in rows
            ]
    records = {(decided.client, decided.rid): decided async for decided in decisions(running.bus, Wanted())}
    replies = [each.result() for each in asking]
    return [
        Asked(row, reply, records.get((reply.client, reply.request_id)))
        for row, reply in zip(rows, replies, strict=True)
    ]


async def _ask(client: Client, row: Mapping[str, Any], places: asyncio.Semaphore, done: Callable[[], None]) -> Reply:
    fields = {name: value for name, value in row.items() if name not in NOT_SENT}
    request = LlmRequest.model_validate({**fields, "deadline_ms": DEADLINE_MS})
    async with places:
        try:
            return await client.ask(request, capability=row["capability"])
        except RequestFailedError as refusal:
            if refusal.reply is None:
                raise
            return refusal.reply
        finally:
            done()


def _telling(found: list[Asked]) -> str:
    """The request whose life tells most: one that was redacted on its way."""
    told = next((each for each in found if each.row.get("expect") == "redacted"), found[0])
    return f"{told.reply.client}/{told.reply.request_id}"


def _check(found: list[Asked], verified: Verified) -> None:
    """Raises LlmbusError when the demo did not go as it should."""
    wrong = [f"{each.reply.client}/{each.reply.request_id} {each.surprising}" for each in found if each.surprising]
    if wrong:
        raise LlmbusError("the guardrails did otherwise than the demo expects: " + "; ".join(wrong))
    if verified.differing:
        raise typer.Exit(1)
