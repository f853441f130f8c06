"""The users' own doors as translations."""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.edge.batch import item_id, read_items
from adapters.edge.door import NoRouteError
from adapters.edge.fleet_doors import memory_told
from adapters.edge.own_doors import ApiChat, Route
from adapters.fleet import away, fold
from ops.policy_file import load_policy
from ops.policy_in_force import SHIPPED, shipped_policy
from router.errors import RequestFailedError
from router.ports import NO_HEADERS
from schemas import (
    BusHealth,
    FleetHealth,
    Heartbeat,
    LlmRequest,
    ModelState,
    Reply,
    ReplyMessage,
    Timings,
    Usage,
)
from subjects import is_token

POLICY = load_policy(shipped_policy(), SHIPPED)


class Fleet:
    """One node, that is heard; and nothing can be answered."""

    def heard(self) -> Mapping[str, Heartbeat]:
        coder = ModelState(provider="ollama", in_memory="resident", memory_bytes=21_500_000_000)
        return {"macmini": Heartbeat(node="macmini", instance="i", version="1", models={"coder": coder})}

    async def health(self) -> FleetHealth:
        return fold(BusHealth(up=True), 1, {"macmini": away("macmini", "it is not heard")}, 5)


def read(door: Route | ApiChat, headers: Mapping[str, str] = NO_HEADERS, **body: Any) -> LlmRequest:
    return door.read(json.dumps(body).encode(), headers, POLICY).request


def route(role: str | None = None) -> Route:
    return Route(Fleet(), lambda: POLICY, role)


@pytest.mark.parametrize(
    ("word", "meant"), [("low", "batch"), ("normal", "normal"), ("high", "high"), ("critical", "critical")]
)
def test_the_users_words_for_urgency_are_the_buss(word: str, meant: str) -> None:
    assert read(route(), prompt="항구", urgency=word).urgency == meant
    assert read(ApiChat(), {"x-llm-urgency": word}, message="항구").urgency == meant


def test_every_field_of_a_request_arrives() -> None:
    request = read(
        route(), {"x-llm-agent": "npc-ai"}, prompt="항구", task_type="plan", max_tokens=9, temperature=0.5,
        context="밤", model="fast", preferences={"strategy": "speed", "max_tokens": 1},
        constraints={"time_critical": True},
    )  # fmt: skip
    assert (request.prompt, request.context, request.task, request.model) == ("항구", "밤", "plan", "fast")
    assert (request.preferences.max_tokens, request.preferences.temperature) == (9, 0.5)
    assert (request.preferences.strategy, request.constraints.time_critical) == ("speed", True)
    assert (request.agent, request.stream) == ("npc-ai", False)


def test_a_context_that_is_no_text_goes_as_json() -> None:
    assert read(ApiChat(), message="안녕", context={"도시": ["부산", 1]}).context == '{"도시":["부산",1]}'
    assert read(ApiChat(), message="안녕", context=None).context is None


def test_a_role_is_the_model_that_has_it_in_the_policy() -> None:
    assert [read(route(role), prompt="네").model for role in ("architect", "coder", "reviewer")] == [
        "architect", "coder", "reviewer",
    ]  # fmt: skip
    with pytest.raises(NoRouteError, match="role: poet"):
        read(route("poet"), prompt="네")
    with pytest.raises(ValueError, match="/route"):
        read(route("coder"), prompt="네", model="gemini")


@pytest.mark.parametrize(
    ("node", "notice", "gb"), [("macmini", None, 21.5), ("elsewhere", None, 19), ("macmini", "no model answered", 0)]
)
def test_an_answer_has_the_memory_that_its_model_takes_there(node: str, notice: str | None, gb: float) -> None:
    reply = Reply(
        request_id="r1", client="c", request_hash="h", status="ok", message=ReplyMessage(content="답"), model="coder",
        node=node, agent_role="coder", usage=Usage(tokens_in=3, tokens_out=4), cost_usd=Decimal(0), notice=notice,
        timings=Timings(total_ms=12.5),
    )  # fmt: skip
    door = route()
    asked = door.read('{"prompt": "질문"}'.encode(), NO_HEADERS, POLICY)
    told = door.answer(asked, reply)
    assert told.pop("timestamp")
    assert told.pop("notice", None) == notice
    assert told == {
        "model": "coder", "agent": "coder", "response": "답", "tokens_generated": 4, "latency_ms": 12.5,
        "memory_used_gb": gb, "request_id": "r1",
    }  # fmt: skip


@given(st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True) | st.just("seq"), st.integers(0, 999))
def test_every_item_of_a_batch_has_an_id_of_its_own_that_the_bus_takes(rid: str, index: int) -> None:
    own = item_id(rid, index)
    assert is_token(own)
    assert own.endswith(f"-{index}")
    assert not re.fullmatch("seq-[0-9]+", own)


def test_a_batch_is_bounded() -> None:
    assert len(read_items(b"[" + b"1," * 999 + b"1]", "r")) == 1_000
    with pytest.raises(RequestFailedError, match="1 to 1000"):
        read_items(b"[" + b"1," * 1_000 + b"1]", "r")


def test_memory_is_told_as_measured_and_of_a_node_that_is_away_only_what_the_policy_says() -> None:
    nodes = memory_told(POLICY, Fleet().heard())["nodes"]
    assert (nodes["macmini"]["resident"], nodes["macmini"]["used_by_models_gb"]) == (["coder"], 21.5)
    assert nodes["macmini"]["models"]["coder"]["memory_gb"] == 21.5
    assert nodes["macmini"]["models"]["architect"]["memory_gb"] == 52
    assert (nodes["macbook"]["heard"], nodes["macbook"]["used_by_models_gb"]) == (False, None)
    assert nodes["macbook"]["models"]["judge"]["memory_gb"] == 6
