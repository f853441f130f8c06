"""`llmbus router`, `llmbus node` and `llmbus edge`: one role in the foreground until it is told to stop."""

import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated

import typer

from ops.commands.options import DEFAULT_URL, NatsUrl, run_quietly

Open = Callable[[str], AbstractAsyncContextManager[object]]
"""Starts the role on the bus at a URL."""

ORPHAN_S = 5.0
"""What a role may take to finish once its parent is gone."""

Supervised = Annotated[bool, typer.Option("--supervised", hidden=True)]
"""Started by `llmbus up`: stdin brings the URL of the bus in a line, and its end says that the parent is gone."""


def router(nats_url: NatsUrl = DEFAULT_URL, supervised: Supervised = False) -> None:
    """Run one router in the foreground.

    Any number of them share the work. Ctrl-C or SIGTERM ends it, with what it has in hand finished.
    """
    _without_rich()
    from ops.router import router as routing

    _run(routing, nats_url, supervised)


def node(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name in the policy.")],
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Let loopback answer for models whose backend is not usable.")
    ] = False,
    drain: Annotated[
        bool, typer.Option("--drain", help="Tell the running node to take nothing new and to finish what runs.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Tell the running node to take work again.")] = False,
    nats_url: NatsUrl = DEFAULT_URL,
    supervised: Supervised = False,
) -> None:
    """Run the executor of one node in the foreground, or tell the one that runs.

    Ctrl-C or SIGTERM ends it, with what runs finished; what waits goes to other nodes that can take it.
    """
    if drain and resume:
        raise typer.BadParameter("one of --drain and --resume, not both")
    if drain or resume:
        from ops.commands.node_told import tell

        run_quietly(tell(nats_url, name, "drain" if drain else "resume"))
        return
    _without_rich()
    from ops.node import node as working

    _run(lambda url: working(url, name, stand_in=stand_in), nats_url, supervised)


def edge(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="The port to listen on; 0 is a free one.")
    ] = 8484,
    keys: Annotated[
        bool, typer.Option("--keys", help="Serve only who shows a key, on this machine too: see `llmbus key`.")
    ] = False,
    behind_tls: Annotated[
        bool, typer.Option("--behind-tls", help="Something in front of it speaks TLS, and only that can reach it.")
    ] = False,
    nats_url: NatsUrl = DEFAULT_URL,
    supervised: Supervised = False,
) -> None:
    """Run an HTTP edge in the foreground: the doors for clients of OpenAI and Anthropic, and plain HTTP.

    Any number of them share the clients. To be reached from other machines it needs keys, and `--behind-tls`. Ctrl-C or
    SIGTERM ends it, with the answers under way finished.
    """
    _without_rich()
    from ops.edge import edge as serving

    _run(lambda url: serving(url, host=host, port=port, keys=keys, behind_tls=behind_tls), nats_url, supervised)


def _without_rich() -> None:
    # structlog takes rich when it is there; a long-running role need not carry it.
    sys.modules["rich"] = None  # type: ignore[assignment]


def _run(open_role: Open, url: str, supervised: bool) -> None:
    import asyncio

    _log_json()
    if supervised:
        url = _first_line()
        if not url:
            return
    if sys.platform == "win32":
        asyncio.run(_until_stopped(open_role, url, supervised))
    else:
        import uvloop

        uvloop.run(_until_stopped(open_role, url, supervised))


def _first_line() -> str:
    """Unbuffered: what follows in the pipe is for the loop to notice."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as pipe:
        return pipe.readline().decode().strip()


async def _until_stopped(open_role: Open, url: str, supervised: bool) -> None:
    import asyncio
    import os
    import signal

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    starting = asyncio.current_task()

    def told() -> None:
        if stop.is_set():
            os._exit(130)  # told twice: now
        stop.set()
        if starting is not None:
            starting.cancel()

    def parent_is_gone() -> None:
        loop.remove_reader(sys.stdin)
        loop.call_later(ORPHAN_S, os._exit, 1)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)
    if supervised:
        loop.add_reader(sys.stdin, parent_is_gone)
    try:
        async with open_role(url):
            starting = None
            _quicken()
            await stop.wait()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


def _quicken() -> None:
    """Collect garbage seldom: what start-up made stays, and a request makes no cycles."""
    import gc

    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _log_json() -> None:
    """JSON lines on stderr."""
    import logging

    import structlog

    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
