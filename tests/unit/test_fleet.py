"""What is known of each part becomes one answer, and every doubt in it has its words."""

import pytest

from adapters.fleet import away, fold, node_health
from schemas import BackendState, BusHealth, Health, Heartbeat, ModelState

UP = BusHealth(up=True, answered_ms=0.4)
SILENT_MS = 3_500


def beat(**more: object) -> Heartbeat:
    models = {"coder": ModelState(provider="ollama")}
    return Heartbeat.model_validate({"node": "mini", "instance": "i", "version": "1", "models": models, **more})


def answer(status: str = "ok", **more: object) -> Health:
    return Health.model_validate({**beat(**more).model_dump(), "backends": {}, "status": status, **more})


def test_a_node_that_is_heard_and_answers_is_as_it_says() -> None:
    node = node_health("mini", beat(), 300, answer(), SILENT_MS)
    assert (node.status, node.why_not, node.heard_ms_ago, node.takes_work) == ("ok", None, 300, True)
    assert fold(UP, 1, {"mini": node}, 5).status == "ok"


def test_a_node_that_is_heard_but_does_not_answer_may_still_take_work() -> None:
    node = node_health("mini", beat(), 300, None, SILENT_MS)
    assert (node.status, node.takes_work) == ("degraded", True)
    assert "does not answer" in (node.why_not or "")
    assert fold(UP, 1, {"mini": node}, 5).status == "degraded"


@pytest.mark.parametrize(("ago_ms", "reply"), [(None, None), (3_501, None), (3_501, answer()), (None, answer())])
def test_a_node_that_is_not_heard_is_away_for_everybody(ago_ms: int | None, reply: Health | None) -> None:
    node = node_health("mini", beat(), ago_ms, reply, SILENT_MS)
    assert (node.status, node.takes_work, node.heard_ms_ago) == ("away", False, ago_ms)
    assert fold(UP, 1, {"mini": node}, 5).status == "down"


def test_what_is_wrong_with_a_node_is_said_once_each() -> None:
    gone = "127.0.0.1:11434 cannot be reached"
    models = {
        "coder": ModelState(provider="ollama", usable=False, why_not=gone),
        "gpt": ModelState(provider="loopback", stand_in=True, why_not="OPENAI_API_KEY is not set"),
    }
    backends = {"ollama": BackendState(reachable=False, why_not=gone), "openai": BackendState(reachable=True)}
    node = node_health("mini", beat(), 10, answer("down", models=models, backends=backends, draining=True), SILENT_MS)
    assert (node.why_not or "").split("; ") == [
        "it drains: it takes nothing new", f"ollama: {gone}", "gpt: OPENAI_API_KEY is not set",
        "not usable: coder", "loopback stands in for gpt",
    ]  # fmt: skip
    assert not node.takes_work


def test_a_stand_in_answers_and_is_no_good_health() -> None:
    models = {"coder": ModelState(provider="loopback", stand_in=True, why_not="no key")}
    node = node_health("mini", beat(), 10, answer("down", models=models), SILENT_MS)
    whole = fold(UP, 1, {"mini": node, "cloud": away("cloud", "it is not heard")}, 5)
    assert (whole.status, len(whole.why_not)) == ("degraded", 2)


def test_without_bus_router_or_node_nothing_is_answered_and_the_first_cause_is_named() -> None:
    nodes = {"mini": node_health("mini", beat(), 10, answer(), SILENT_MS)}
    assert fold(UP, 0, nodes, 5).why_not == ("router: none answers; start one with `llmbus router`",)
    assert fold(UP, 0, nodes, 5).status == "down"
    assert fold(UP, 1, {}, 5).status == "down"
    whole = fold(BusHealth(up=False, why_not="gone"), 0, {"mini": away("mini", "the bus is away")}, 5)
    assert (whole.status, whole.why_not) == ("down", ("bus: gone",))
