"""The list of requests on record: who asked when, where it went, what it cost."""

from datetime import UTC, datetime

from rich.text import Text

from adapters.bus import open_bus
from ops.commands.history import Wanted, decisions, replies
from ops.commands.screen import console, ms, print_json, table, usd
from schemas.decision import Decided
from schemas.event import Replied

WIDE_ENOUGH = 120


async def show_requests(url: str, wanted: Wanted, *, as_json: bool) -> None:
    """Oldest first, so that the newest stands above the prompt."""
    async with open_bus(url, name="llmbus replay") as bus:
        replied = await replies(bus, wanted)
        rows = [(decided, replied.get((decided.client, decided.rid))) async for decided in decisions(bus, wanted)]
    if as_json:
        print_json([_facts(decided, reply) for decided, reply in rows])
        return
    out = console()
    wide = out.width >= WIDE_ENOUGH
    made = table("asked", "request", "task", "went to")
    if wide:
        made.add_column("because of")
    made.add_column("cost", justify="right")
    made.add_column("latency", justify="right")
    for decided, reply in rows:
        asked = datetime.fromtimestamp(decided.world.received_ms / 1000, UTC).astimezone()
        places = (_where(decided, reply), decided.decision.route or decided.decision.stage)
        made.add_row(
            f"{asked:%m-%d %H:%M:%S}", f"{decided.client}/{decided.rid}", decided.decision.task or decided.capability,
            *places[: 2 if wide else 1], usd(reply.cost_usd) if reply and reply.error is None else "",
            ms(reply.total_ms) if reply else "",
        )  # fmt: skip
    out.print(made if rows else "no request on record matches; look with fewer conditions")
    if rows:
        out.print(Text(f"{len(rows)} requests; `llmbus replay CLIENT/RID` shows one's whole life", "dim"))


def _where(decided: Decided, reply: Replied | None) -> Text:
    """Who answered, or why nobody did."""
    if reply is not None and reply.error is not None:
        return Text(reply.error.value, "red")
    target = decided.decision.line().split()[0]
    return Text(target) if reply else Text(f"{target} open", "yellow")


def _facts(decided: Decided, reply: Replied | None) -> dict[str, object]:
    return {
        "client": decided.client,
        "rid": decided.rid,
        "seq": decided.request_seq,
        "received_ms": decided.world.received_ms,
        "capability": decided.capability,
        "task": decided.decision.task,
        "decision": decided.decision.line(),
        "policy": decided.world.policy,
        "status": reply.status if reply else None,
        "error": reply.error if reply else None,
        "cost_usd": reply.cost_usd if reply else None,
        "total_ms": reply.total_ms if reply else None,
    }
