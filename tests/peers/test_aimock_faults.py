"""What each dialect makes of the faults that aimock has on cue: the right failure, never an answer, never a retry."""

from typing import Any

import pytest

from schemas.failure import FailureKind
from tests.support.aimock import Aimock
from tests.support.dialects import CANARY, call, every, fail

pytestmark = pytest.mark.node

TEXT = "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열"


def refusal(status: int, message: str, kind: str = "error", **more: Any) -> dict[str, Any]:
    return {"response": {"error": {"message": message, "type": kind}, "status": status, **more}}


def streamed(**fault: Any) -> dict[str, Any]:
    return {"response": {"content": TEXT}, "chunkSize": 2, **fault}


@every()
@pytest.mark.parametrize(
    ("fixture", "kind", "status"),
    [
        (refusal(429, "slow down", retryAfter=7), FailureKind.RATE_LIMITED, 429),
        (refusal(529, "Overloaded", retryAfter=7), FailureKind.SERVER_ERROR, 529),
        (refusal(500, "internal"), FailureKind.SERVER_ERROR, 500),
        (refusal(503, "unavailable"), FailureKind.SERVER_ERROR, 503),
        (refusal(401, f"bad key {CANARY}"), FailureKind.AUTH, 401),
        (refusal(404, "no such model"), FailureKind.BAD_REQUEST, 404),
        (refusal(400, "prompt is too long: 210000 tokens > 200000"), FailureKind.CONTEXT_TOO_LONG, 400),
        (refusal(400, "flagged by moderation"), FailureKind.CONTENT_POLICY, 400),
    ],
    ids=lambda value: str(value["response"]["status"]) if isinstance(value, dict) else None,
)
async def test_a_refusal_is_told_for_what_it_is_and_not_tried_again(
    aimock: Aimock, dialect: str, fixture: dict[str, Any], kind: FailureKind, status: int
) -> None:
    await aimock.teach(fixture)
    failure = await fail(dialect, aimock.url)
    assert (failure.kind, failure.status) == (kind, status)
    # aimock sends its Retry-After with a 429 only.
    assert failure.retry_after_ms == (7000 if status == 429 else None)
    assert CANARY not in failure.model_dump_json()
    assert fixture["response"]["error"]["message"].replace(CANARY, "[key]") in failure.message
    [asked] = await aimock.asked()
    assert asked["response"]["status"] == status


@every()
@pytest.mark.parametrize("pieces", [1, 3, 8])
async def test_a_truncated_stream_is_never_whole(aimock: Aimock, dialect: str, pieces: int) -> None:
    await aimock.teach(streamed(truncateAfterChunks=pieces, latency=3))
    failure = await fail(dialect, aimock.url)
    # With its first piece it may drop the connection before even its status is out.
    begun = {FailureKind.INTERRUPTED} | ({FailureKind.CONNECTION} if pieces == 1 else set())
    assert failure.kind in begun
    [asked] = await aimock.asked()
    assert asked["response"]["interruptReason"] == "truncateAfterChunks"


@every()
async def test_a_connection_dropped_amid_a_stream_is_an_interruption(aimock: Aimock, dialect: str) -> None:
    await aimock.teach(streamed(disconnectAfterMs=150, streamingProfile={"ttft": 10, "tps": 20}))
    failure = await fail(dialect, aimock.url)
    assert failure.kind is FailureKind.INTERRUPTED
    [asked] = await aimock.asked()
    assert asked["response"]["interruptReason"] == "disconnectAfterMs"


@every()
async def test_a_late_first_token_is_silence(aimock: Aimock, dialect: str) -> None:
    await aimock.teach(streamed(streamingProfile={"ttft": 30_000, "tps": 100}))
    failure = await fail(dialect, aimock.url, call(dialect, first_ms=150))
    assert failure.kind is FailureKind.SILENCE
    assert len(await aimock.asked()) == 1


@every()
async def test_a_pause_amid_a_stream_is_an_interruption(aimock: Aimock, dialect: str) -> None:
    # Where a dialect opens with an event that says nothing, the text begins with the second or third.
    await aimock.teach(streamed(streamingProfile={"ttft": 5, "tps": 2.5}))
    failure = await fail(dialect, aimock.url, call(dialect, first_ms=5000, idle_ms=100))
    assert failure.kind is FailureKind.INTERRUPTED
    assert "100 ms" in failure.message
    assert len(await aimock.asked()) == 1


@every()
@pytest.mark.parametrize(
    ("rate", "kind"),
    [
        ("dropRate", FailureKind.SERVER_ERROR),
        ("malformedRate", FailureKind.MALFORMED),
        ("disconnectRate", FailureKind.CONNECTION),
        ("rateLimitRate", FailureKind.RATE_LIMITED),
    ],
)
async def test_chaos_is_never_an_answer(aimock: Aimock, dialect: str, rate: str, kind: FailureKind) -> None:
    await aimock.teach(streamed())
    await aimock.chaos(**{rate: 1})
    failure = await fail(dialect, aimock.url)
    assert failure.kind is kind
    assert len(await aimock.asked()) == 1
