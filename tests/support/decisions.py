"""Policies, worlds and requests for tests of the decision, in a line each."""

import json
from pathlib import Path
from typing import Any

import ops
from ops.policy_file import load_policy
from router.core.admit import Asked, admit
from router.core.decide import decide
from schemas.decision import Decision, Forward, Refuse
from schemas.failure import ErrorType
from schemas.heartbeat import ModelState
from schemas.policy import Policy
from schemas.world import NodeView, World
from subjects import Request

SHIPPED = load_policy((Path(ops.__file__).parent / "policy.yaml").read_text(encoding="utf-8"), "policy.yaml")
NOW = 1_000_000


def small(**changes: Any) -> Policy:
    """Three models on two machines and a cloud: `big` and `tiny` are ours, `paid` costs."""
    ours = {"provider": "p", "backend": "b", "price": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}}
    policy = {
        "version": 1,
        "nodes": {"a": {}, "b": {}, "cloud": {}},
        "providers": {"p": {"dialect": "loopback"}},
        "models": {
            "big": {
                **ours,
                "nodes": ["a", "b"],
                "context_tokens": 1000,
                "quality": 0.9,
                "tokens_per_s": 10,
                "lighter": "tiny",
            },
            "tiny": {**ours, "nodes": ["b"], "context_tokens": 500, "quality": 0.4, "tokens_per_s": 90, "tools": False},
            "paid": {
                "provider": "p",
                "backend": "b",
                "nodes": ["cloud"],
                "context_tokens": 9000,
                "quality": 0.95,
                "tokens_per_s": 50,
                "price": {"input_usd_per_mtok": 2, "output_usd_per_mtok": 8},
            },
        },
        "capabilities": {"chat": {"models": ["big", "tiny", "paid"]}, "plan": {"task": "plan"}},
        "tasks": {"plan": {"models": ["big"]}, "code": {"models": ["big"]}},
        "default": {"models": ["tiny"]},
        "fallbacks": {"default": []},
        "guardrails": {},
    }
    return Policy.model_validate(policy | changes)


def world(
    policy: Policy, *, as_of_ms: int = NOW, received_ms: int = NOW, seq: int = 0, **nodes: NodeView | None
) -> World:
    """Every node of the policy well and idle, but for those that are given; None is a node never heard of."""
    well = {
        node: NodeView(
            heard_ms=as_of_ms,
            models={name: ModelState(provider="p") for name, model in policy.models.items() if node in model.nodes},
        )
        for node in policy.nodes
    }
    views = {name: view for name, view in {**well, **nodes}.items() if view is not None}
    return World(as_of_ms=as_of_ms, received_ms=received_ms, request_seq=seq, policy=1, nodes=views)


def ask(capability: str = "chat", policy: Policy = SHIPPED, **body: Any) -> Asked:
    data = json.dumps({"prompt": "안녕", **body}).encode()
    return admit(Request(capability), data, {}, 1, policy.limits)


def ruled(policy: Policy, capability: str = "chat", seen: World | None = None, **body: Any) -> Decision:
    return decide(ask(capability, policy, **body), seen or world(policy), policy).decision


def taken(decision: Decision) -> tuple[str, ...]:
    """Target and fallbacks as `model@node`."""
    assert isinstance(decision.choice, Forward), decision.choice
    return tuple(f"{t.model}@{t.node}" for t in (decision.choice.target, *decision.choice.fallbacks))


def refused(decision: Decision) -> ErrorType:
    assert isinstance(decision.choice, Refuse), decision.choice
    return decision.choice.error


def state(**facts: Any) -> ModelState:
    return ModelState(provider="p", **facts)
