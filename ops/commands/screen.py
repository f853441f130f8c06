"""How things look on a terminal: one console, and the words and colours that all commands share."""

import json
import os
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

WIDE = 140
"""Columns where there is no terminal to tell."""
GAP = 2
"""Between two columns."""
PROSE = 24
"""To what width a column of words may shrink."""
INDENT = 4
BETWEEN = Text(" · ", "dim")
"""Where a row is a paragraph."""

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


class Rows(Table):
    """A table whose cells are never cut: where they do not fit side by side, each row is a paragraph instead."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if sum(map(_needs, self.columns)) + GAP * (len(self.columns) - 1) <= options.max_width:
            yield from super().__rich_console__(console, options)
        else:
            yield from self._paragraphs(options.max_width)

    def _paragraphs(self, width: int) -> Iterator[Text | Padding]:
        """A row without a first cell goes on with the one above."""
        _, *names = [str(column.header) for column in self.columns]
        indent = 0
        for first, *cells in zip(*(column.cells for column in self.columns), strict=True):
            told = [(name, _text(cell)) for name, cell in zip(names, cells, strict=True) if str(cell)]
            lead = _text(first)
            if lead:
                yield lead
                indent = len(lead.plain) - len(lead.plain.lstrip()) + INDENT
            elif told:
                told[0] = ("", told[0][1])
            named = [Text.assemble((f"{name} " if name else "", "bold dim"), words) for name, words in told]
            for line in _lines(named, width - indent):
                yield Padding(line, (0, 0, 0, indent))


def _lines(parts: list[Text], width: int) -> Iterator[Text]:
    """The parts side by side, each on one line where it fits on one."""
    line: list[Text] = []
    for part in parts:
        if line and BETWEEN.join([*line, part]).cell_len > width:
            yield BETWEEN.join(line)
            line = []
        line.append(part)
    if line:
        yield BETWEEN.join(line)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


def _needs(column: Column) -> int:
    """The least width at which the column reads well."""
    lines = [line for cell in (column.header, *column.cells) for line in Text(str(cell)).split()]
    widest = max((line.cell_len for line in lines), default=0)
    if column.ratio or column.overflow == "fold":
        widest = min(widest, PROSE)
    return min(widest, column.max_width) if column.max_width else widest


def table(*columns: str | tuple[str, dict[str, Any]], title: str | None = None) -> Rows:
    made = Rows(
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
