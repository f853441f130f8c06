"""Where a request goes: routes, strategies, the balance among equals, and what urgency and constraints make of them."""

from typing import Any

import pytest

from router.core.strategies import Option
from router.core.strategies.speed import speed
from schemas.decision import Refuse, Wait
from schemas.failure import ErrorType
from schemas.heartbeat import ModelState
from schemas.world import NodeView
from tests.support.decisions import NOW, SHIPPED, refused, ruled, small, state, taken, world


@pytest.mark.parametrize(
    ("strategy", "order"),
    [
        ("agent_preference", ("big@a", "big@b", "tiny@b", "paid@cloud")),
        ("quality", ("paid@cloud", "big@a", "big@b", "tiny@b")),
        ("cost", ("big@a", "big@b", "tiny@b", "paid@cloud")),
        ("speed", ("tiny@b", "paid@cloud", "big@a", "big@b")),
    ],
)
def test_each_strategy_has_its_order(strategy: str, order: tuple[str, ...]) -> None:
    decision = ruled(small(), preferences={"strategy": strategy})
    assert decision.strategy == strategy
    assert taken(decision) == order
    scores = [c.score for c in decision.candidates if c.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert taken(ruled(small(default_strategy=strategy))) == order


def test_an_unknown_price_counts_as_the_highest() -> None:
    models = small().model_dump()["models"]
    models["big"]["price"] = None
    assert taken(ruled(small(models=models), preferences={"strategy": "cost"}))[0] == "tiny@b"
    assert taken(ruled(small(models=models), constraints={"max_cost_usd": 5})) == ("tiny@b", "paid@cloud")


def test_what_is_busy_is_not_quick() -> None:
    busy = NodeView(heard_ms=NOW, models={"big": state(), "tiny": state(running=1, waiting=4)})
    policy = small()
    assert taken(ruled(policy, seen=world(policy, b=busy), preferences={"strategy": "speed"}))[0] == "paid@cloud"


def test_a_node_that_holds_the_model_goes_before_one_that_must_load_it() -> None:
    models = small().model_dump()["models"]
    policy = small(models={**models, "big": {**models["big"], "memory_gb": 50}})
    absent = NodeView(heard_ms=NOW, models={"big": state(in_memory="absent")})
    held = NodeView(heard_ms=NOW, models={"big": state(in_memory="resident"), "tiny": state()})
    assert taken(ruled(policy, "plan", world(policy, a=absent, b=held)))[0] == "big@b"
    # A load of 25 s is still better than to wait for an answer of 50 s.
    busy = NodeView(heard_ms=NOW, models={"big": state(in_memory="resident", running=1), "tiny": state()})
    assert taken(ruled(policy, "plan", world(policy, a=absent, b=busy)))[0] == "big@a"


def test_what_would_answer_too_late_gives_way_to_the_chain_and_is_asked_when_there_is_nobody_else() -> None:
    policy = small(fallbacks={"default": ["paid"]})
    full = NodeView(heard_ms=NOW, models={"big": state(running=1, waiting=5), "tiny": state()})
    seen = world(policy, a=full, b=full)
    decision = ruled(policy, "plan", seen)
    assert taken(decision) == ("paid@cloud", "big@a", "big@b")
    assert [c.passed_over for c in decision.candidates if c.model == "big"] == ["too_late", "too_late"]
    assert taken(ruled(policy, "plan", seen, deadline_ms=1_000_000))[0] == "big@a"
    assert taken(ruled(small(), "plan", world(small(), a=full, b=full)))[0] == "big@a"


def test_what_waits_counts_once_in_the_speed_of_a_place() -> None:
    model = small().models["big"]
    idle, busy = (Option("big", model, "a", state(running=n), 0, 10, 100) for n in (0, 1))
    assert (speed(idle), speed(busy)) == (-10, -20)  # 100 tokens at 10 a second, then behind another


def test_what_was_sent_since_a_node_was_heard_counts_as_its_load() -> None:
    policy = small()
    seen = world(policy).model_copy(update={"sent": {"big@a": 1}})
    assert taken(ruled(policy, "plan", seen))[0] == "big@b"
    back = world(policy, a=NodeView(heard_ms=NOW, models={"big": state(running=1)}))
    assert taken(ruled(policy, "plan", back.model_copy(update={"sent": {"big@a": -1, "big@b": 1}})))[0] == "big@a"


@pytest.mark.parametrize(
    ("balance", "a", "first"),
    [
        ("round_robin", state(running=1), "a"),
        ("least_loaded", state(running=1), "b"),
        ("least_loaded", state(waiting=1, slots=4), "b"),
        ("health_based", state(ok=1, failed=3), "b"),
        ("health_based", state(running=1, ok=5), "a"),
    ],
)
def test_among_equals_the_balance_decides(balance: str, a: ModelState, first: str) -> None:
    policy = small(balance=balance)
    nodes = world(policy, a=NodeView(heard_ms=NOW, models={"big": a}))
    assert taken(ruled(policy, "plan", nodes))[0] == f"big@{first}"


@pytest.mark.parametrize("balance", ["round_robin", "least_loaded", "health_based"])
def test_equals_take_turns(balance: str) -> None:
    policy = small(balance=balance)
    firsts = [taken(ruled(policy, "plan", world(policy, seq=seq)))[0] for seq in range(4)]
    assert firsts == ["big@a", "big@b", "big@a", "big@b"]


@pytest.mark.parametrize("task", ["plan", "design", "architecture"])
def test_a_critical_plan_keeps_the_big_model(task: str) -> None:
    assert taken(ruled(SHIPPED, task=task, urgency="critical"))[0] == "architect@macmini"


@pytest.mark.parametrize(
    ("task", "first"),
    [
        ("requirements", "coder"),
        ("strategy", "coder"),
        ("code", "reviewer"),
        ("fix", "reviewer"),
        ("review", "reviewer"),
    ],
)
def test_other_critical_work_gets_the_lighter_model(task: str, first: str) -> None:
    decision = ruled(SHIPPED, task=task, urgency="critical")
    assert taken(decision)[0] == f"{first}@macmini"
    assert decision.urgency == "critical"


@pytest.mark.parametrize("urgency", ["high", "normal", "batch"])
def test_only_critical_work_gets_the_lighter_model(urgency: str) -> None:
    assert taken(ruled(SHIPPED, task="code", urgency=urgency))[0] == "coder@macmini"


@pytest.mark.parametrize(
    ("constraints", "strategy", "first"),
    [
        ({"quality_critical": True}, "quality", "paid@cloud"),
        ({"time_critical": True}, "speed", "tiny@b"),
        ({"quality_critical": True, "time_critical": True}, "quality", "paid@cloud"),
        ({"budget_constraint": "high"}, "cost", "big@a"),
        ({"budget_constraint": "low"}, "agent_preference", "big@a"),
    ],
)
def test_constraints_bend_the_strategy(constraints: dict[str, Any], strategy: str, first: str) -> None:
    decision = ruled(small(), constraints=constraints)
    assert (decision.strategy, taken(decision)[0]) == (strategy, first)


def test_the_strategy_asked_for_wins_over_the_constraints() -> None:
    assert ruled(small(), preferences={"strategy": "cost"}, constraints={"quality_critical": True}).strategy == "cost"


SHIPPED_ROUTES = [
    ("code", {}, "task:code", "coder@macmini"),
    ("chat", {"task": "refactor"}, "task:refactor", "coder@macmini"),
    ("plan", {}, "task:plan", "architect@macmini"),
    ("review", {}, "task:review", "reviewer@macmini"),
    ("chat", {"task": "summary"}, "task:summary", "reviewer@macmini"),
    ("chat", {"task": "paint the fence"}, "default", "architect@macmini"),
    ("chat", {"task": "없는 일"}, "default", "architect@macmini"),
    ("creative", {}, "capability:creative", "gemini@cloud"),
    ("judge", {}, "capability:judge", "judge@macbook"),
    ("chat", {"model": "creative"}, "alias:creative", "claude@cloud"),
    ("chat", {"model": "high-reasoning"}, "alias:high-reasoning", "claude@cloud"),
    ("code", {"model": "gpt"}, "model:gpt", "gpt@cloud"),
    ("code", {"agent": "rule-manager"}, "agent:rule-manager", "reviewer@macmini"),
    ("code", {"agent": "strategy_agent"}, "agent:strategy_agent", "claude@cloud"),
    ("code", {"agent": "strategy_agent", "model": "cheap"}, "alias:cheap", "reviewer@macmini"),
    ("code", {"agent": "nobody-knows"}, "task:code", "coder@macmini"),
    ("trading", {}, "task:strategy_development/parameter_optimization", "gpt@cloud"),
    (
        "trading",
        {"constraints": {"quality_critical": True}},
        "task:strategy_development/complex_strategy",
        "claude@cloud",
    ),
    (
        "trading",
        {"constraints": {"time_critical": True}},
        "task:strategy_development/signal_generation",
        "gemini@cloud",
    ),
    (
        "chat",
        {"task": "data_processing", "constraints": {"dataset_size": 10_000}},
        "task:data_processing/large_dataset",
        "gemini@cloud",
    ),
    ("chat", {"task": "data_processing"}, "task:data_processing/simple_calculation", "gemini@cloud"),
    (
        "chat",
        {"task": "data_processing", "prompt": "매수 " * 500},
        "task:data_processing/normal_dataset",
        "gemini@cloud",
    ),
    ("chat", {"task": "backtesting"}, "task:service_operations/backtesting", "gemini@cloud"),
]


@pytest.mark.parametrize(("capability", "body", "route", "first"), SHIPPED_ROUTES)
def test_the_shipped_policy_leads_where_its_users_expect(
    capability: str, body: dict[str, Any], route: str, first: str
) -> None:
    decision = ruled(SHIPPED, capability, **body)
    assert (decision.route, taken(decision)[0]) == (route, first)
    assert decision.line().startswith(first)


@pytest.mark.parametrize(
    ("capability", "body"), [("nowhere", {}), ("chat", {"model": "gpt-9"}), ("chat", {"model": ""})]
)
def test_a_name_that_leads_nowhere_is_refused_with_those_that_lead_somewhere(
    capability: str, body: dict[str, Any]
) -> None:
    decision = ruled(SHIPPED, capability, **body)
    assert (refused(decision), decision.stage) == (ErrorType.NO_ROUTE, "task")
    assert isinstance(decision.choice, Refuse)
    assert "known are: " in decision.choice.message
    assert (" more" in decision.choice.message) == ("model" in body)


def test_when_a_route_is_out_its_fallback_chain_follows_in_order() -> None:
    decision = ruled(SHIPPED, "code", world(SHIPPED, macmini=None))
    assert taken(decision)[:3] == ("gemini@cloud", "gpt@cloud", "claude@cloud")
    assert isinstance(ruled(SHIPPED, "judge", world(SHIPPED, macbook=None)).choice, Wait)
