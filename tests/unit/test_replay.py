"""A recorded decision against its recomputation: nothing when it holds, each planted difference found."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from ops.policy_file import load_policy
from ops.policy_in_force import shipped_policy
from router.core.admit import admit
from router.core.decide import decide
from router.core.replay import Difference, differences
from schemas import headers as h
from schemas.decision import Decided, Decision, Refuse
from schemas.failure import ErrorType
from schemas.heartbeat import ModelState
from schemas.policy import Policy
from schemas.request import LlmRequest, Preferences, request_hash
from schemas.world import NodeView, World
from subjects import Request

POLICY = load_policy(shipped_policy(), "ops/policy.yaml")
CODE = Request("code")
SEQ = 7
NOW_MS = 1_800_000_000_000


@dataclass(frozen=True)
class Letter:
    body: bytes
    subject: Request = CODE
    headers: dict[str, str] = field(default_factory=lambda: {h.CLIENT: "npc-ai", h.REQUEST_ID: "r1"})

    def differences(
        self, decided: Decided, policy: Policy = POLICY, earlier: Decided | None = None
    ) -> tuple[Difference, ...]:
        return differences(decided, self.subject, self.body, self.headers, SEQ, policy, earlier=earlier)

    def decided(self, **changes: Any) -> Decided:
        """As the router records it, and as it comes back from the stream."""
        asked = admit(self.subject, self.body, self.headers, SEQ, POLICY.limits)
        record = Decided(
            client=asked.client,
            rid=asked.rid,
            request_hash=asked.request_hash,
            request_seq=SEQ,
            capability=asked.capability,
            agent=asked.request.agent if asked.request else None,
            world=WORLD,
            decision=decide(asked, WORLD, POLICY).decision,
        )
        return Decided.decode(record.model_copy(update=changes).encode())


def view(node: str) -> NodeView:
    models = {name: ModelState(provider=m.provider, ok=3) for name, m in POLICY.models.items() if node in m.nodes}
    return NodeView(heard_ms=NOW_MS - 500, models=models)


WORLD = World(
    as_of_ms=NOW_MS,
    received_ms=NOW_MS - 3,
    request_seq=SEQ,
    policy=1,
    nodes={node: view(node) for node in POLICY.nodes},
)
LETTER = Letter(LlmRequest(prompt="Write a parser.", agent="npc-ai", task="code").encode())


@pytest.mark.parametrize(
    "body",
    [
        LETTER.body,
        b"a plain prompt",
        LlmRequest(prompt="x", preferences=Preferences(strategy="cost"), urgency="critical").encode(),
        LlmRequest(prompt="AWS_ACCESS_KEY_ID=AKIANOTAREALKEY2FAKE").encode(),
        LlmRequest(prompt="x", model="nobody").encode(),
        LlmRequest(prompt="x", deadline_ms=-1).encode(),
        b'{"prompt": 7}',
        b"{broken",
        b"\xff\xfe",
    ],
)
def test_a_record_that_holds_has_no_difference(body: bytes) -> None:
    letter = Letter(body)
    assert letter.differences(letter.decided()) == ()


def test_another_target_is_found() -> None:
    decided = LETTER.decided()
    planted = decided.decision.model_dump()
    planted["choice"]["target"]["model"] = "claude"
    found = LETTER.differences(decided.model_copy(update={"decision": Decision.model_validate(planted)}))
    assert [difference.field for difference in found] == ["choice"]


def test_another_score_is_found() -> None:
    decided = LETTER.decided()
    first, *others = decided.decision.candidates
    candidates = (first.model_copy(update={"score": 0.123}), *others)
    changed = decided.decision.model_copy(update={"candidates": candidates})
    found = LETTER.differences(decided.model_copy(update={"decision": changed}))
    assert [(each.field, each.recorded) for each in found] == [("candidates", candidates)]


@pytest.mark.parametrize("name", ["client", "rid", "request_hash", "request_seq", "capability", "agent"])
def test_every_name_is_compared(name: str) -> None:
    value: object = 99 if name == "request_seq" else "other"
    assert [each.field for each in LETTER.differences(LETTER.decided(**{name: value}))] == [name]


def test_another_body_another_policy_and_another_world_are_found() -> None:
    decided = LETTER.decided()
    assert "request_hash" in {each.field for each in Letter(LETTER.body + b" ").differences(decided)}
    dearer = POLICY.model_copy(update={"agents": {}})
    assert "route" in {each.field for each in LETTER.differences(decided, dearer)}
    silent = WORLD.model_copy(update={"nodes": {}})
    assert "candidates" in {each.field for each in LETTER.differences(decided.model_copy(update={"world": silent}))}


def conflict(letter: Letter) -> Decided:
    refuse = Refuse(error=ErrorType.IDEMPOTENCY_CONFLICT, message="its answer is at seq-7")
    return letter.decided(rid=f"seq-{SEQ}", decision=Decision(choice=refuse, stage="admit"))


def test_a_conflict_stands_when_another_request_was_recorded_before_under_the_id() -> None:
    letter = Letter(b"the second")
    first = Letter(b"the first").decided(request_seq=3)
    assert letter.differences(conflict(letter), earlier=first) == ()
    same = letter.decided(request_seq=3)
    for earlier in (None, same):
        assert [each.field for each in letter.differences(conflict(letter), earlier=earlier)] == ["earlier"]


def test_of_a_poison_refusal_the_names_are_compared_without_reading_its_body() -> None:
    letter = Letter(b'{"request_id": "from-the-body", "prompt": "kills"}', headers={h.CLIENT: "npc-ai"})
    refuse = Refuse(error=ErrorType.POISON, message="it came back too often without a decision")
    decided = letter.decided(
        rid=f"seq-{SEQ}", request_hash=request_hash("code", letter.body), agent=None,
        decision=Decision(choice=refuse, stage="admit"),
    )  # fmt: skip
    assert letter.differences(decided) == ()
    assert [each.field for each in letter.differences(decided.model_copy(update={"rid": "seq-8"}))] == ["rid"]
