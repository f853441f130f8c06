"""The nodes as they last said of themselves."""

import asyncio
from dataclasses import dataclass

from pydantic import ValidationError
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adapters.bus import JetStreamBus, open_bus
from ops.commands.screen import console, print_json, table
from schemas.heartbeat import Heartbeat, ModelState
from subjects.streams import NODES_BUCKET

LOOK_S = 1.0
LATE_S = 5.0
"""More than two heartbeats missed."""


@dataclass(frozen=True, slots=True)
class Node:
    beat: Heartbeat
    heard_s: float
    """Seconds since its last heartbeat."""
    now_ms: int
    """When it was looked at, in broker time."""


async def show_nodes(url: str, *, watch: bool, as_json: bool) -> None:
    out = console()
    async with open_bus(url, name="llmbus nodes") as bus:
        nodes = await heard(bus)
        if as_json:
            print_json([{"heard_s": round(node.heard_s, 3), **node.beat.model_dump(mode="json")} for node in nodes])
        elif watch:
            with Live(node_table(nodes), console=out, auto_refresh=False) as live:
                while True:
                    await asyncio.sleep(LOOK_S)
                    live.update(node_table(await heard(bus)), refresh=True)
        else:
            out.print(node_table(nodes) if nodes else "no node was heard lately; start one with `llmbus node NAME`")


async def heard(bus: JetStreamBus) -> list[Node]:
    """By name."""
    nodes = []
    async for letter in bus.read(f"KV_{NODES_BUCKET}"):
        try:
            beat = Heartbeat.decode(letter.data)
        except ValidationError:
            continue
        now_ms = bus.now_ms()
        nodes.append(Node(beat, max(0, now_ms - letter.timestamp_ms) / 1000, now_ms))
    return sorted(nodes, key=lambda node: node.beat.node)


def node_table(nodes: list[Node]) -> Table:
    right = {"justify": "right"}
    made = table(
        "node", "model", ("answered by", {"overflow": "fold"}), ("slots", right), ("running", right),
        ("waiting", right), ("health", right), "breaker", "last failure", ("memory free", right), ("heard", right),
    )  # fmt: skip
    for node in nodes:
        for at, (name, state) in enumerate(node.beat.models.items()):
            own = (_name(node.beat), _memory(node.beat), _heard(node.heard_s)) if at == 0 else ("", "", "")
            made.add_row(
                own[0], name, _by(state), str(state.slots), str(state.running), str(state.waiting),
                health(state), breaker(state, node.now_ms), state.last_failure or "", own[1], own[2],
            )  # fmt: skip
    return made


def _name(beat: Heartbeat) -> Text:
    return Text.assemble((beat.node, "bold"), (" draining" if beat.draining else "", "yellow"))


def _by(state: ModelState) -> Text:
    if not state.usable:
        return Text(f"nobody: {state.why_not}", "red")
    return Text("loopback stands in", "yellow") if state.stand_in else Text(state.provider, "green")


def health(state: ModelState) -> Text:
    return Text(f"{state.health:.0%}", "" if state.health > 0.8 else "red")


def breaker(state: ModelState, now_ms: int) -> Text:
    """Nothing when it is closed, as it should be."""
    if state.breaker == "open":
        left_s = max(0, (state.open_until_ms or now_ms) - now_ms) / 1000
        return Text(f"open {left_s:.1f} s", "red")
    return Text("half open", "yellow") if state.breaker == "half_open" else Text()


def _memory(beat: Heartbeat) -> str:
    if beat.memory_free_bytes is None or not beat.memory_total_bytes:
        return ""
    return f"{beat.memory_free_bytes / 1e9:.0f} of {beat.memory_total_bytes / 1e9:.0f} GB"


def _heard(seconds: float) -> Text:
    return Text(f"{seconds:.1f} s ago", "red" if seconds > LATE_S else "dim")
