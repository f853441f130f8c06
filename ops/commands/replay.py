"""`llmbus replay`: what was asked, decided, tried, answered and paid, read from the streams."""

from typing import Annotated

import typer

from ops.commands.options import DEFAULT_URL, Json, NatsUrl, run_quietly


def replay(
    request: Annotated[
        str | None, typer.Argument(metavar="ID", help="RID or CLIENT/RID: that request's whole life.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="From this time on: 90s, 15m, 2h, 7d, or ISO 8601.")] = None,
    until: Annotated[str | None, typer.Option(help="Up to this time.")] = None,
    subject: Annotated[str | None, typer.Option(help="Asked on this subject: llm.req.code, llm.req.*")] = None,
    client: Annotated[str | None, typer.Option(help="Asked by this client.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Recompute each decision and report differences.")] = False,
    nats_url: NatsUrl = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Show a request's life, list requests, or verify.

    --verify recomputes every decision; the exit code is 1 when any differs.
    """
    from ops.commands.history import Wanted, moment

    wanted = Wanted(request, moment(since), moment(until), subject, client)
    if verify:
        from ops.commands.verify import run

        run_quietly(run(nats_url, wanted, as_json=as_json))
    elif request is not None:
        from ops.commands.timeline import show_life

        run_quietly(show_life(nats_url, request, as_json=as_json))
    else:
        from ops.commands.request_list import show_requests

        run_quietly(show_requests(nats_url, wanted, as_json=as_json))
