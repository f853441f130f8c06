"""Attempts and what became of them, for tests of what follows: three targets in a row, settled in a line each."""

from decimal import Decimal
from typing import Any

from router.core.settle import Settlement, settle
from schemas.failure import RETRYABLE, ErrorType, Failure, FailureKind
from schemas.outcome import Answer, AttemptTimings, Outcome
from schemas.policy import Policy
from schemas.request import Chat, ChatMessage
from schemas.work import AttemptRecord, Target, Usage, WorkItem
from schemas.world import World
from tests.support.decisions import NOW, small, world

POLICY = small()
USAGE = Usage(tokens_in=1000, tokens_out=100)
PAID_USD = Decimal("0.0028")


def target(model: str, node: str) -> Target:
    return Target(node=node, model=model, backend="b", provider="p", role="coder")


BIG_A, BIG_B, TINY_B, PAID = (
    target("big", "a"), target("big", "b"), target("tiny", "b"), target("paid", "cloud"),
)  # fmt: skip


def work(
    at: Target = BIG_A, fallbacks: tuple[Target, ...] = (BIG_B, TINY_B, PAID), priors: tuple[AttemptRecord, ...] = ()
) -> WorkItem:
    return WorkItem(
        client="npc-ai", rid="r1", request_hash="0" * 64, request_seq=1, capability="code", urgency="normal",
        attempt=len(priors) + 1, target=at, fallbacks=fallbacks, priors=priors,
        chat=Chat(messages=(ChatMessage(role="user", content="안녕"),)),
        received_ms=NOW, deadline_at_ms=NOW + 60_000, sent_ms=NOW, policy=1, decision="big@a",
    )  # fmt: skip


def ended(item: WorkItem, result: Answer | FailureKind | None, *, stand_in: bool = False, **facts: Any) -> Outcome:
    return Outcome(
        work=item,
        attempt_id=f"{item.attempt}.1",
        node=item.target.node,
        provider="loopback" if stand_in else "p",
        answer=result if isinstance(result, Answer) else None,
        failure=Failure(kind=result, message="it broke", **facts) if isinstance(result, FailureKind) else None,
        timings=AttemptTimings(queue_ms=3, first_token_ms=20, total_ms=120),
        stand_in=stand_in,
    )


def settled(outcome: Outcome, seen: World | None = None, policy: Policy = POLICY) -> Settlement:
    result = settle(outcome, seen or world(policy, as_of_ms=NOW + 500, received_ms=NOW), policy)
    assert (result.reply is None) != (result.retry is None)
    return result


def error_of(result: Settlement) -> ErrorType:
    assert result.reply is not None
    assert result.reply.error is not None
    assert result.reply.error.request_id == "r1"
    assert result.reply.error.retryable == (result.reply.error.type in RETRYABLE)
    return result.reply.error.type


def next_of(result: Settlement) -> tuple[str, str, str]:
    assert result.retry is not None
    return result.retry.target.model, result.retry.target.node, result.why


def run(item: WorkItem, *kinds: FailureKind) -> Settlement:
    """Settle failure after failure, following the retries."""
    for kind in kinds[:-1]:
        retry = settled(ended(item, kind)).retry
        assert retry is not None
        item = retry
    return settled(ended(item, kinds[-1]))


AGAIN, NEXT = ("big", "a", "retry_same"), ("big", "b", "next_target")
