"""Options that several commands share, and how a command runs."""

from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

DEFAULT_PORT = 4222
DEFAULT_URL = f"nats://127.0.0.1:{DEFAULT_PORT}"

SCHEMES = ("nats", "tls", "ws", "wss")


def server(url: str | None) -> str | None:
    """With its scheme, so that a password in it is found and not told. Raises typer.BadParameter."""
    from urllib.parse import urlsplit

    if url is None:
        return None
    url = url if "://" in url else f"nats://{url}"
    try:
        parts = urlsplit(url)
        good = parts.scheme in SCHEMES and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise typer.BadParameter("a nats-server is named like nats://127.0.0.1:4222")
    return url


NatsUrl = Annotated[
    str,
    typer.Option(
        "--nats-url", envvar="NATS_URL", metavar="URL", callback=server, help="The nats-server to connect to."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Store = Annotated[
    Path,
    typer.Option("--store", envvar="LLMBUS_HOME", metavar="DIR", help="Where the broker and the logs live."),
]
SENTENCE = 1_000
"""No sentence is as long, in characters."""
DEFAULT_STORE = Path("~/.local/share/llmbus")

T = TypeVar("T")


class Group(TyperGroup):
    """Says of each command its whole first sentence, on as many lines as that takes."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            command.short_help = command.get_short_help_str(limit=SENTENCE)
        return command


def run_quietly(work: Coroutine[Any, Any, T]) -> T:
    """Run what a command does. It says itself, in one message, what went wrong; the libraries need not log it."""
    import asyncio

    import structlog

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return asyncio.run(work)
