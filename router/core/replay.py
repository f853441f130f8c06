"""Was this decided as it would be decided again? A record of a decision against its recomputation. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from router.core.admit import Asked, admit
from router.core.decide import decide
from schemas.decision import Decided, Decision, Refuse
from schemas.failure import ErrorType
from schemas.policy import Policy
from subjects import Request


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that is recorded otherwise than it comes out now."""

    field: str
    recorded: object
    recomputed: object


def differences(
    decided: Decided, subject: Request, body: bytes, headers: Mapping[str, str], seq: int, policy: Policy, *,
    earlier: Decided | None = None,
) -> tuple[Difference, ...]:  # fmt: skip
    """Nothing, when the recorded world and the policy of the recorded revision lead to the recorded decision.

    Two refusals are made of more than these. An idempotency conflict stands when `earlier`, the record under the id
    that the request asked for, is that of another request. Poison is made of a delivery count that no message carries:
    of it only the names can be compared.
    """
    error = refused(decided)
    named_by = b"" if error is ErrorType.POISON else body
    asked = admit(subject, named_by, headers, seq, policy.limits)
    if error is ErrorType.IDEMPOTENCY_CONFLICT:
        return (*_names(decided, asked, rid=f"seq-{seq}"), *_conflict(asked, earlier))
    if error is ErrorType.POISON:
        return _names(decided, asked, rid=asked.rid)
    # Through JSON, as the record went.
    again = Decision.decode(decide(asked, decided.world, policy).decision.encode())
    return (
        *_names(decided, asked, rid=asked.rid),
        *_compare({"request_hash": (decided.request_hash, asked.request_hash)}),
        *_compare({"agent": (decided.agent, asked.request.agent if asked.request else None)}),
        *_compare({name: (getattr(decided.decision, name), getattr(again, name)) for name in Decision.model_fields}),
    )


def refused(decided: Decided) -> ErrorType | None:
    """What it was refused for, if it was."""
    choice = decided.decision.choice
    return choice.error if isinstance(choice, Refuse) else None


def _names(decided: Decided, asked: Asked, *, rid: str) -> tuple[Difference, ...]:
    return _compare(
        {
            "client": (decided.client, asked.client),
            "rid": (decided.rid, rid),
            "request_seq": (decided.request_seq, asked.seq),
            "capability": (decided.capability, asked.capability),
        }
    )


def _conflict(asked: Asked, earlier: Decided | None) -> tuple[Difference, ...]:
    if earlier is None:
        return (Difference("earlier", "another request under this id", None),)
    if earlier.request_hash == asked.request_hash:
        return (Difference("earlier", "another request under this id", "the same request"),)
    return ()


def _compare(pairs: Mapping[str, tuple[object, object]]) -> tuple[Difference, ...]:
    return tuple(Difference(name, was, now) for name, (was, now) in pairs.items() if was != now)
