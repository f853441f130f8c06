"""`llmbus up`: a whole llmbus on this machine, staying up."""

from pathlib import Path
from typing import Annotated

import typer

from ops.commands.options import DEFAULT_PORT, DEFAULT_STORE, Json, Store, run_quietly, server

MAX_PORT = 65_535


def up(
    store: Store = DEFAULT_STORE,
    port: Annotated[
        int | None,
        typer.Option(
            min=-1,
            max=MAX_PORT,
            metavar="N",
            help=f"The port of the embedded broker on 127.0.0.1, {DEFAULT_PORT} by default; -1 is a free one.",
        ),
    ] = None,
    nats_url: Annotated[
        str | None,
        typer.Option(
            "--nats-url", envvar="NATS_URL", metavar="URL", callback=server, help="Use this nats-server; start none."
        ),
    ] = None,
    http_port: Annotated[
        int,
        typer.Option(min=0, max=MAX_PORT, metavar="N", help="The port of the HTTP edge on 127.0.0.1; 0 is a free one."),
    ] = 8484,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Serve over HTTP only who shows a key, on this machine too: see `llmbus key`."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Start broker, router, HTTP edge and nodes here, and stay up.

    Ctrl-C stops everything it started. Where a model has no backend here, loopback stands in and says so.
    """
    if nats_url is not None and port is not None:
        raise typer.BadParameter("--nats-url or NATS_URL names a nats-server, so none is started that had a --port")
    own = DEFAULT_PORT if port is None else port
    run_quietly(_up(store.expanduser().absolute(), own, nats_url, http_port, keys=keys, as_json=as_json))


async def _up(store: Path, port: int, url: str | None, http_port: int, *, keys: bool, as_json: bool) -> None:
    from ops.commands.children import early_router

    async with early_router(store) as router:
        from ops.commands.up_screen import stay_up

        await stay_up(store, router, port, url, http_port, keys=keys, as_json=as_json)
