"""`llmbus up`: a whole llmbus on this machine, staying up."""

from pathlib import Path
from typing import Annotated

import typer

from ops.commands.options import DEFAULT_STORE, Json, Store, run_quietly


def up(
    store: Store = DEFAULT_STORE,
    port: Annotated[int, typer.Option(help="The port of the embedded broker on 127.0.0.1.")] = 4222,
    nats_url: Annotated[
        str | None,
        typer.Option("--nats-url", envvar="NATS_URL", metavar="URL", help="Use this nats-server; start none."),
    ] = None,
    http_port: Annotated[int, typer.Option(help="The port of the HTTP edge on 127.0.0.1; 0 is a free one.")] = 8484,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Serve over HTTP only who shows a key, on this machine too: see `llmbus key`."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Start broker, router, HTTP edge and nodes here, and stay up.

    Ctrl-C stops everything it started. Where a model has no backend here, loopback stands in and says so.
    """
    run_quietly(_up(store.expanduser().absolute(), port, nats_url, http_port, keys=keys, as_json=as_json))


async def _up(store: Path, port: int, url: str | None, http_port: int, *, keys: bool, as_json: bool) -> None:
    from ops.commands.children import early_router

    async with early_router(store) as router:
        from ops.commands.up_screen import stay_up

        await stay_up(store, router, port, url, http_port, keys=keys, as_json=as_json)
