"""Options that several commands share, and how a command runs."""

from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

DEFAULT_URL = "nats://127.0.0.1:4222"

NatsUrl = Annotated[
    str, typer.Option("--nats-url", envvar="NATS_URL", metavar="URL", help="The nats-server to connect to.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Store = Annotated[
    Path,
    typer.Option("--store", envvar="LLMBUS_HOME", metavar="DIR", help="Where the broker and the logs live."),
]
DEFAULT_STORE = Path("~/.local/share/llmbus")

T = TypeVar("T")


def run_quietly(work: Coroutine[Any, Any, T]) -> T:
    """Run what a command does. It says itself, in one message, what went wrong; the libraries need not log it."""
    import asyncio

    import structlog

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    return asyncio.run(work)
