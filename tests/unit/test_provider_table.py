"""What `llmbus providers` and `llmbus nodes` make of the policy and of what the nodes said."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from ops.commands.node_table import Node, node_table
from ops.commands.provider_table import Place, places
from ops.policy_file import load_policy
from schemas import Heartbeat, ModelState
from schemas.failure import FailureKind

NOW_MS = 1_000_000
CANARY = "canary-0123456789"
POLICY = f"""
version: 1
nodes:
  mini: {{urls: {{local: "http://me:{CANARY}@10.0.0.7:11434/v1?key={CANARY}"}}}}
  cloud: {{}}
providers:
  local: {{dialect: ollama}}
  far: {{dialect: openai, url: "https://far.example/v1", keys: [FAR_KEY]}}
  idle: {{dialect: loopback}}
models:
  coder: {{nodes: [mini, cloud], provider: local, backend: "c:32b", context_tokens: 1000, quality: 0, tokens_per_s: 1}}
  gpt: {{nodes: [cloud], provider: far, backend: gpt, context_tokens: 1000, quality: 0, tokens_per_s: 1}}
capabilities: {{code: {{models: [coder]}}}}
default: {{models: [coder]}}
""".replace("  cloud: {}\n", '  cloud: {urls: {local: "http://10.0.0.8:11434"}}\n')


def beat(name: str, **models: ModelState) -> Node:
    return Node(Heartbeat(node=name, instance="i", version="1", models=models), 0.5, NOW_MS)


def found(provider: str, *nodes: Node) -> list[Place]:
    policy = load_policy(POLICY, "policy.yaml")
    return places(policy, provider, {node.beat.node: node for node in nodes}, NOW_MS)


def test_each_model_stands_with_its_node_and_nobody_heard_says_so() -> None:
    coder, elsewhere = found("local", beat("mini", coder=ModelState(provider="local")))
    assert (coder.model, coder.node, coder.why_not) == ("coder", "mini", None)
    assert elsewhere.why_not is not None
    assert "llmbus node cloud" in elsewhere.why_not
    assert coder.url == "http://10.0.0.7:11434/v1", "neither a password nor a query"
    assert found("idle") == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"usable": False, "why_not": "FAR_KEY is not set"}, "FAR_KEY is not set"),
        ({"stand_in": True}, "cannot be used; loopback stands in"),
        ({"stand_in": True, "why_not": "no key"}, "no key; loopback stands in"),
        ({"breaker": "open", "open_until_ms": NOW_MS + 1}, "breaker is open"),
        ({"breaker": "open", "open_until_ms": NOW_MS}, None),
        ({"breaker": "half_open"}, None),
    ],
)
def test_why_a_model_cannot_be_used(said: dict[str, Any], why: str | None) -> None:
    (gpt,) = found("far", beat("cloud", gpt=ModelState(provider="far", **said)))
    assert (why is None) == (gpt.why_not is None)
    assert (why or "") in (gpt.why_not or "")
    assert (gpt.state is None) == ("stand_in" in said), "the health of a loopback is not the provider's"


def test_a_node_with_an_older_policy_is_told_of() -> None:
    (gpt,) = found("far", beat("cloud"))
    assert gpt.why_not is not None
    assert "start it again" in gpt.why_not


@pytest.mark.parametrize("width", [100, 150])
def test_nodes_show_their_machine_and_their_silence(width: int) -> None:
    models = {"a-model-with-a-long-name": ModelState(provider="anthropic", running=3, slots=16, tokens_per_s=1234.5)}
    asleep = Heartbeat(
        node="macbook", instance="i", version="1", models=models, battery_percent=54.0, power="battery", load_1m=3.14,
        cpus=8,
    )  # fmt: skip
    away = Node(asleep, 4.2, NOW_MS)
    leaving = Node(Heartbeat(node="mini", instance="i", version="1", models={}, draining=True), 0.4, NOW_MS)
    console = Console(width=width, record=True, file=StringIO())
    console.print(node_table([away, leaving]))
    text = console.export_text()
    told = " ".join(text.split())
    for words in ("macbook silent", "silent for 4 s", "load 3.1 on 8 cores", "54%", "mini draining", "heard 0.4 s ago"):
        assert words in told
    row = next(line for line in text.splitlines() if "a-model-with-a-long-name" in line)
    assert all(words in row for words in ("anthropic", "3 of 16", "1,234"))


def test_nodes_show_the_breaker_and_the_last_failure() -> None:
    states = {
        "opened": ModelState(
            provider="p", breaker="open", open_until_ms=NOW_MS + 3_200, last_failure=FailureKind.SILENCE
        ),
        "probed": ModelState(provider="p", breaker="half_open"),
        "well": ModelState(provider="p"),
    }
    console = Console(width=160, record=True, file=StringIO())
    console.print(node_table([beat("mini", **states)]))
    rows = {name: line for line in console.export_text().splitlines() for name in states if name in line}
    assert "open 3.2 s" in rows["opened"]
    assert "silence" in rows["opened"]
    assert "half open" in rows["probed"]
    assert "open" not in rows["well"]
