"""How things look on a terminal: one console, and the words and colours that all commands share."""

import json
import os
import sys
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 140
"""Columns where there is no terminal to tell."""

KINDS = {
    "request": "cyan",
    "decided": "blue",
    "attempt_started": "magenta",
    "attempt_ended": "yellow",
    "replied": "green",
    "cancelled": "yellow",
    "policy": "bold magenta",
    "dead": "bold red",
}
"""A colour for each kind of event."""


def console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def print_json(value: object, *, indent: int | None = 2) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent, default=_plain) + "\n")
    sys.stdout.flush()


def _plain(value: object) -> object:
    """What JSON has no word for: messages as they travel, exact money as text."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_none=True)
    return str(value)


def table(*columns: str | tuple[str, dict[str, Any]], title: str | None = None) -> Table:
    made = Table(
        box=None, title=title, title_justify="left", title_style="bold", header_style="bold dim", pad_edge=False
    )
    for column in columns:
        name, options = column if isinstance(column, tuple) else (column, {})
        made.add_column(name, **options)
    return made


def usd(cost: Decimal | None) -> Text:
    """Never 0 for what is not known."""
    if cost is None:
        return Text("?", "yellow")
    return Text("$0", "dim") if not cost else Text(f"${cost.normalize():f}")


def ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value / 1000:.1f} s" if value >= 10_000 else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def one_line(text: str) -> str:
    return " ".join(text.split())
