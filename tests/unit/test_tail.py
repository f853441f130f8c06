"""What `llmbus tail` prints of an event: one line where there is room, and all of it where there is none."""

from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from ops.commands.tail import say

HEAD = Text("15:29:10.026 request         gm-orchestrator 0a46a793861c  ")
WORDS = Text("creative  항구 마을을 한 문장으로 묘사해 줘, 배와 갈매기와 안개까지 모두")


def printed(width: int, *, terminal: bool = True) -> list[str]:
    out = StringIO()
    say(Console(file=out, width=width, force_terminal=terminal, color_system=None), HEAD.copy(), WORDS)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_an_event_is_one_line_where_there_is_room() -> None:
    assert printed(140) == [HEAD.plain + WORDS.plain]


def test_an_event_is_one_line_where_there_is_no_terminal() -> None:
    assert printed(60, terminal=False) == [HEAD.plain + WORDS.plain]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_in_a_narrow_terminal_the_words_stand_under_the_head_whole(width: int) -> None:
    head, *words = printed(width)
    assert head == HEAD.plain.rstrip()
    assert " ".join(" ".join(words).split()) == " ".join(WORDS.plain.split())
    assert all(line.startswith("    ") and Text(line).cell_len <= width for line in words)
