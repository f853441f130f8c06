"""How everything is, on one screen: the bus, its routers, each node with its backends, the models, the memory."""

import nats.errors
from rich.table import Table
from rich.text import Text

from adapters.bus import open_bus
from adapters.fleet import Fleet, fold
from ops.commands.node_table import Node, node_table
from ops.commands.screen import console, table
from ops.policy_file import load_policy
from ops.policy_in_force import SHIPPED, policy_store, shipped_policy
from router.errors import UnavailableError
from schemas.health import BusHealth, FleetHealth, NodeHealth

CONNECT_S = 1.0
COLOURS = {"ok": "green", "degraded": "yellow", "down": "red", "away": "red"}


async def find_out(url: str) -> FleetHealth:
    """Raises PolicyError when the policy in force cannot be read."""
    try:
        async with open_bus(url, name="llmbus health", wait_s=CONNECT_S) as bus:
            active = await (await policy_store(bus)).active()
            policy = active.policy if active else load_policy(shipped_policy(), SHIPPED)
            fleet = Fleet(bus, lambda: policy)
            async with fleet.listening():
                return await fleet.health()
    except (UnavailableError, nats.errors.Error, TimeoutError) as error:
        return fold(BusHealth(up=False, why_not=str(error) or type(error).__name__), 0, {}, None)


def show(health: FleetHealth) -> None:
    out = console()
    out.print(_parts(health))
    there = [
        Node(node, (node.heard_ms_ago or 0) / 1000, health.as_of_ms or 0)
        for node in health.nodes.values()
        if node.status != "away"
    ]
    if there:
        out.print()
        out.print(node_table(there))


def _parts(health: FleetHealth) -> Table:
    made = table(("", {"no_wrap": True}), "", ("", {"overflow": "fold"}))
    made.show_header = False
    answers = "everything answers" if health.status == "ok" else "requests are answered"
    made.add_row(
        Text("llmbus", "bold"), _mark(health.status), "nothing can be answered" if health.status == "down" else answers
    )
    bus = health.bus
    made.add_row("bus", _mark("ok" if bus.up else "down"), bus.why_not or f"answers within {bus.answered_ms:.1f} ms")
    if bus.up:
        routers = f"{health.routers} answering" if health.routers else "none answers; start one with `llmbus router`"
        made.add_row("routers", _mark("ok" if health.routers else "down"), routers)
    for name, node in health.nodes.items():
        made.add_row(f"node {name}", _mark(node.status), _node(node) if bus.up else "")
    return made


def _node(node: NodeHealth) -> str:
    reachable = [name for name, backend in node.backends.items() if backend.reachable]
    words = [f"reaches {', '.join(reachable)}"] if reachable else []
    return "\n".join([*words, *(node.why_not or "").split("; ")]).strip()


def _mark(status: str) -> Text:
    return Text(status, COLOURS[status])
