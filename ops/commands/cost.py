"""`llmbus cost`: what was spent, on whom and on what, read from the audit chain."""

from typing import Annotated

import typer

from ops.commands.options import DEFAULT_URL, Json, NatsUrl, run_quietly


def cost(
    by: Annotated[str, typer.Option(help="agent, model, provider, task, client or day.")] = "agent",
    since: Annotated[str | None, typer.Option(help="Asked from this time on: 90s, 15m, 24h, 7d, or ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option(help="Asked up to this time.")] = None,
    client: Annotated[str | None, typer.Option(help="Asked by this client.")] = None,
    prices: Annotated[
        str | None,
        typer.Option(
            metavar="current|FILE", help="Price it again: as of today with the active policy, or with a policy in FILE."
        ),
    ] = None,
    nats_url: NatsUrl = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Sum up what was spent.

    What brought an answer stands apart from what failed or was cancelled; a cost that is not known is never 0.
    """
    from ops.commands.cost_table import show_cost
    from ops.commands.history import Wanted, moment

    wanted = Wanted(since=moment(since), until=moment(until), client=client)
    run_quietly(show_cost(nats_url, wanted, by, prices, as_json=as_json))
