"""The nodes as they last said of themselves."""

import asyncio
from dataclasses import dataclass

from pydantic import ValidationError
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adapters.bus import JetStreamBus, open_bus
from ops.commands.screen import console, print_json, table
from schemas.heartbeat import Heartbeat, ModelState, WaitReason
from subjects.streams import NODES_BUCKET

LOOK_S = 1.0
SILENT_S = 3.5
"""As by the default of `limits.node_silent_ms`."""
SHORT_S = 1.5
"""No heartbeat is missing."""
WAITS: dict[WaitReason, str] = {
    "collating": "those in memory go on with what goes before it",
    "lingering": "one in memory was talked to a moment ago",
    "making_room": "those that go for it finish their answers",
    "changing": "another is being loaded or unloaded",
    "memory_taken": "other programs have the memory",
    "load_failed": "its last load failed",
}


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
    """A node's own line, then one for each of its models; what is out of the ordinary stands at the end."""
    right = {"justify": "right", "no_wrap": True}
    made = table(
        ("node, model", {"no_wrap": True}), ("answered by", {"no_wrap": True}), ("running", right), ("waiting", right),
        ("tok/s", right), ("health", right), ("", {"overflow": "fold", "ratio": 1}),
    )  # fmt: skip
    made.expand = True
    for node in nodes:
        made.add_row(_name(node), "", "", "", "", "", _facts(node))
        for name, state in node.beat.models.items():
            speed = "" if state.tokens_per_s is None else f"{state.tokens_per_s:,.0f}"
            made.add_row(
                f"  {name}", _by(state), f"{state.running} of {state.slots}", str(state.waiting), speed, health(state),
                _notes(state, node.now_ms),
            )  # fmt: skip
    return made


def _name(node: Node) -> Text:
    if node.heard_s > SILENT_S:
        return Text.assemble((node.beat.node, "bold"), (" silent", "red"))
    return Text.assemble((node.beat.node, "bold"), (" draining" if node.beat.draining else "", "yellow"))


def _facts(node: Node) -> Text:
    """When it was heard, and of what it said of its machine what it knew."""
    beat = node.beat
    facts = [_heard(node.heard_s)]
    if beat.memory_free_bytes is not None and beat.memory_total_bytes:
        facts.append(Text(f"{beat.memory_free_bytes / 1e9:.0f} of {beat.memory_total_bytes / 1e9:.0f} GB free", "dim"))
    if beat.load_1m is not None:
        cpus = f" on {beat.cpus} cores" if beat.cpus else ""
        facts.append(Text(f"load {beat.load_1m:.1f}{cpus}", "dim"))
    if beat.battery_percent is not None:
        powered = {"battery": "on battery", "mains": "plugged in"}.get(beat.power or "", "battery")
        facts.append(Text(f"{beat.battery_percent:.0f}% {powered}", "yellow" if beat.power == "battery" else "dim"))
    return Text(", ", "dim").join(facts)


def _by(state: ModelState) -> Text:
    if not state.usable:
        return Text("nobody", "red")
    return Text("loopback", "yellow") if state.stand_in else Text(state.provider, "green")


def _notes(state: ModelState, now_ms: int) -> Text:
    notes = _residence(state)
    if state.stand_in:
        notes.append(Text("loopback stands in", "yellow"))
    elif not state.usable:
        notes.append(Text(state.why_not or "", "red"))
    if opened := breaker(state, now_ms):
        notes.append(Text.assemble("breaker ", opened))
    if state.last_failure:
        notes.append(Text(f"last failure: {state.last_failure.value}", "yellow"))
    return Text(", ").join(notes)


def _residence(state: ModelState) -> list[Text]:
    """Of a model that comes and goes in its node's memory: where it is, or what it waits for."""
    if state.waits_for:
        return [Text(f"to be loaded: {WAITS[state.waits_for]}", "yellow")]
    if state.in_memory in (None, "absent"):
        return []
    size = f" {state.memory_bytes / 1e9:.1f} GB" if state.memory_bytes and state.in_memory == "resident" else ""
    return [Text(f"in memory{size}" if state.in_memory == "resident" else state.in_memory, "dim")]


def health(state: ModelState) -> Text:
    return Text(f"{state.health:.0%}", "" if state.health > 0.8 else "red")


def breaker(state: ModelState, now_ms: int) -> Text:
    """Nothing when it is closed, as it should be."""
    if state.breaker == "open":
        left_s = max(0, (state.open_until_ms or now_ms) - now_ms) / 1000
        return Text(f"open {left_s:.1f} s", "red")
    return Text("half open", "yellow") if state.breaker == "half_open" else Text()


def _heard(seconds: float) -> Text:
    if seconds > SILENT_S:
        return Text(f"silent for {seconds:.0f} s", "red")
    return Text(f"heard {seconds:.1f} s ago", "dim" if seconds <= SHORT_S else "yellow")
