"""Tables on a terminal: side by side where there is room, else a paragraph for each row, and never anything cut."""

from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ops.commands.screen import Rows, table

REQUEST = "gm-orchestrator/07c880ee21bd49138be3304387ec5159"
NOTE = "신중하게 정한 규칙이다: 항구 마을의 배가 모두 떠날 때까지는 아무도 바꾸지 않는다"


def shown(made: Rows, width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(made)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def requests() -> Rows:
    right = {"justify": "right"}
    made = table("asked", "request", "went to", ("cost", right), ("latency", right), ("note", {"overflow": "fold"}))
    made.add_row("11-21 14:54:53", REQUEST, Text("coder@macmini", "green"), "$0.0063", "1,234 ms", NOTE)
    made.add_row("11-21 14:54:54", f"{REQUEST[:-1]}6", Text("no_route", "red"), "", "1.0 ms", "")
    return made


@pytest.mark.parametrize("width", [60, 80, 100])
def test_where_a_table_is_too_wide_each_row_is_a_paragraph_and_nothing_is_cut(width: int) -> None:
    lines = shown(requests(), width)
    assert max(map(cell_len, lines)) <= width
    assert lines[0] == "11-21 14:54:53"
    assert f"    request {REQUEST}" in lines[1]
    whole = " ".join(" ".join(lines).split())
    for words in ("went to coder@macmini", "cost $0.0063", "latency 1,234 ms", f"note {NOTE}", "went to no_route"):
        assert words in whole
    assert "…" not in whole


def test_what_belongs_together_stays_on_one_line() -> None:
    for width in range(40, 100):
        lines = shown(requests(), width)
        for words in ("went to coder@macmini", "cost $0.0063", "latency 1,234 ms", "latency 1.0 ms"):
            assert any(words in line for line in lines), width
        assert not any(line.strip().startswith("·") or line.endswith("·") for line in lines)


def test_where_there_is_room_the_table_is_as_ever() -> None:
    made = table("model", ("input", {"justify": "right"}), ("from", {"overflow": "fold"}))
    made.add_row("claude", "3", "looked up")
    made.add_row("", "6", "")
    assert shown(made, 140) == [
        "model   input  from",
        "claude      3  looked up",
        "            6",
    ]


def test_a_column_of_words_gives_way_before_the_table_does() -> None:
    made = table("revision", ("note", {"overflow": "fold"}))
    made.add_row("1", NOTE)
    lines = shown(made, 40)
    assert lines[0] == "revision  note"
    assert "".join("".join(lines[1:]).split()) == "1" + "".join(NOTE.split())


def test_a_paragraph_stands_under_its_row_and_a_row_without_a_name_goes_on_with_it() -> None:
    made = table("node, model", "backend", "input", "")
    made.add_row("cloud", "", "", "heard")
    made.add_row("  claude", "claude-sonnet-4-5", "3", "")
    made.add_row("", "above 200,000 in", "6", "")
    assert shown(made, 32) == [
        "cloud",
        "    heard",
        "  claude",
        "      backend claude-sonnet-4-5",
        "      input 3",
        "      above 200,000 in · input 6",
    ]
