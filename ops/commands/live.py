"""`llmbus tail`, `llmbus health`, `llmbus nodes` and `llmbus providers`: what happens right now."""

from typing import Annotated

import typer

from ops.commands.options import DEFAULT_URL, Json, NatsUrl, run_quietly


def tail(
    client: Annotated[str | None, typer.Option(help="Only this client's requests.")] = None,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Print every event as it comes."""
    from ops.commands.tail import follow

    run_quietly(follow(nats_url, client, as_json=as_json))


def health(nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False) -> None:
    """Show how everything is: the bus, its routers, the nodes with their backends and models.

    The exit code is 1 when nothing can be answered.
    """
    from ops.commands.health_screen import find_out, show
    from ops.commands.screen import print_json

    found = run_quietly(find_out(nats_url))
    if as_json:
        print_json(found)
    else:
        show(found)
    if found.status == "down":
        raise typer.Exit(1)


def nodes(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep it on the screen until Ctrl-C.")] = False,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the nodes and their models."""
    from ops.commands.node_table import show_nodes

    run_quietly(show_nodes(nats_url, watch=watch, as_json=as_json))


def providers(nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False) -> None:
    """Show the providers: what can be used of them, why not, and how it went lately.

    Keys by their names only, and whether they are set in this shell; what counts is where the node runs.
    """
    from ops.commands.provider_table import show_providers

    run_quietly(show_providers(nats_url, as_json=as_json))
