"""The nodes on a terminal: where a model is, and why it is not there yet."""

from io import StringIO

import pytest
from rich.console import Console

from ops.commands.node_table import WAITS, Node, node_table
from schemas import Heartbeat, ModelState
from schemas.heartbeat import WaitReason


def shown(**state: object) -> str:
    model = ModelState.model_validate({"provider": "ollama", **state})
    beat = Heartbeat(node="macmini", instance="i", version="1", models={"coder": model})
    out = StringIO()
    Console(file=out, width=140).print(node_table([Node(beat, 0.2, 0)]))
    return out.getvalue()


def test_a_model_in_memory_is_shown_with_its_size() -> None:
    assert "in memory 19.5 GB" in shown(in_memory="resident", memory_bytes=19_500_000_000)
    assert "loading" in shown(in_memory="loading", memory_bytes=19_500_000_000)
    assert "memory" not in shown(in_memory="absent", memory_bytes=19_500_000_000)


@pytest.mark.parametrize("reason", WAITS)
def test_what_a_wanted_model_waits_for_is_said_in_words(reason: WaitReason) -> None:
    assert f"to be loaded: {WAITS[reason]}" in shown(in_memory="absent", waits_for=reason)
