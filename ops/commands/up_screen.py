"""What `llmbus up` shows: a line for each part, then how many requests came and were answered."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import nats.errors
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from adapters.bus import JetStreamBus, without_secrets
from ops.bench import Bench
from ops.commands.children import Child
from ops.commands.options import DEFAULT_PORT
from ops.commands.screen import console, print_json
from ops.commands.stack import Stack, stack
from router.errors import BusError
from schemas.heartbeat import Heartbeat
from schemas.policy import Policy
from subjects.streams import REPLIES, REQUESTS

COUNT_S = 1.0
PART_WIDTH = 10


class Screen:
    """One console that parts may speak to at any time."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console: Console = console(stderr=quiet)

    def say(self, part: str, words: str, good: bool) -> None:
        self.line(Text("✓", "green") if good else Text("!", "yellow"), part, Text(words))

    def line(self, mark: Text, part: str, *words: Text) -> None:
        """What is too long for a line goes on under itself."""
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=3, justify="right")
        grid.add_column(width=PART_WIDTH, style="bold")
        for _ in words:
            grid.add_column(overflow="fold")
        grid.add_row(mark, part, *words)
        self.console.print(grid)

    @contextmanager
    def busy(self, words: str) -> Iterator[Status | None]:
        """A spinner, where there is somebody to see it turn."""
        with self.console.status(words) if self.console.is_terminal else nullcontext() as status:
            yield status


async def stay_up(
    store: Path, router: Child, port: int, url: str | None, http_port: int, *, keys: bool, as_json: bool
) -> None:
    stop = asyncio.Event()

    def told() -> None:
        if stop.is_set():
            os._exit(130)  # told twice: now; the children notice
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told)
    screen = Screen(quiet=as_json)
    with screen.busy("starting") as status:
        async with stack(store, router, screen.say, port=port, url=url, http_port=http_port, keys=keys) as running:
            await show_nodes(screen, running)
            if as_json:
                print_json(_facts(running), indent=None)
            screen.console.print(_hint(running, port))
            async with asyncio.TaskGroup() as tasks:
                counting = tasks.create_task(_count_for_ever(running.bus, status))
                await stop.wait()
                counting.cancel()
            if status is not None:
                status.update("stopping: the nodes finish what they have in hand; Ctrl-C again ends it now")
    screen.console.print("  stopped", style="dim")


async def show_nodes(screen: Screen, running: Stack) -> dict[str, str]:
    """A line for each model: who answers for it. Returns the models that loopback stands in for, and why."""
    policy = running.revision.policy
    found = await asyncio.gather(*(reasons(policy, beat) for beat in (running.beats[name] for name in policy.nodes)))
    stand_ins: dict[str, str] = {}
    width = max(map(len, policy.models))
    for name, why in zip(policy.nodes, found, strict=True):
        for at, (model, state) in enumerate(running.beats[name].models.items()):
            if state.stand_in:
                stand_ins[model] = why[model] or ""
                words = Text.assemble(("loopback stands in: ", "yellow"), (stand_ins[model], "dim"))
            elif state.usable:
                words = Text.assemble((state.provider, "green"), f" {policy.models[model].backend}")
            else:
                words = Text(f"nobody: {state.why_not}", "red")
            mark = Text("✓", "green") if at == 0 else Text()
            screen.line(mark, name if at == 0 else "", Text(f"{model:<{width}}", no_wrap=True), words)
    return stand_ins


async def reasons(policy: Policy, beat: Heartbeat) -> dict[str, str | None]:
    """By model: why its own backend cannot answer, where loopback stands in."""
    if not any(state.stand_in for state in beat.models.values()):
        return {}
    bench = Bench(policy, beat.node, stand_in=False, allow_crash=False, environ=os.environ)
    try:
        return {model: served.why_not for model, served in (await bench.serve()).items()}
    finally:
        await bench.aclose()


def _hint(running: Stack, port: int) -> Text:
    url = "" if running.broker and port == DEFAULT_PORT else f" --nats-url {without_secrets(running.url)}"
    return Text.assemble(
        "\n  ready in ", (f"{running.started_s:.1f} s", "bold"), "; try  ", (f'llmbus ask "Hello"{url}', "cyan"),
        f"\n  logs {running.logs}; Ctrl-C stops it all\n",
    )  # fmt: skip


async def _count_for_ever(bus: JetStreamBus, status: Status | None) -> None:
    """Keep the last line of the screen true."""
    begun = time.monotonic()
    start: tuple[int, int] | None = None
    while status is not None:
        up = timedelta(seconds=int(time.monotonic() - begun))
        try:
            asked, answered = await _count(bus, REQUESTS), await _count(bus, REPLIES)
        except (BusError, nats.errors.Error, TimeoutError):
            status.update(f"up {up}   the broker does not answer")
        else:
            start = start or (asked, answered)
            came, went = asked - start[0], answered - start[1]
            status.update(f"up {up}   requests {came}   answers {went}   open {max(0, came - went)}")
        await asyncio.sleep(COUNT_S)


async def _count(bus: JetStreamBus, stream: str) -> int:
    info = await bus.client.jetstream().stream_info(stream)
    return info.state.last_seq


def _facts(running: Stack) -> dict[str, object]:
    return {
        "ready": True,
        "url": without_secrets(running.url),
        "http": running.http,
        "started_s": round(running.started_s, 3),
        "policy": running.revision.number,
        "logs": str(running.logs),
        "nodes": {name: beat.model_dump(mode="json")["models"] for name, beat in running.beats.items()},
    }
