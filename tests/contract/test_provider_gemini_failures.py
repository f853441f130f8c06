"""What goes wrong at Google, each failure with its kind and none with a key in it, over real TCP."""

import json
from typing import Any

import pytest
from pydantic import SecretStr

from adapters.providers.gemini import Gemini
from router.errors import AttemptError
from router.ports import Progress
from schemas.failure import FailureKind
from tests.support.gemini_speech import (
    CANARY,
    MODEL,
    OTHER,
    PIECES,
    RECORDED,
    TEXT,
    USAGE,
    call,
    detail,
    error,
    event,
    fail,
    said,
    text,
)
from tests.support.openai_speech import refusing, streaming
from tests.support.scripted_upstream import Exchange, Script, ScriptedUpstream


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (event(promptFeedback={"blockReason": "PROHIBITED_CONTENT"}, usageMetadata=USAGE), FailureKind.CONTENT_POLICY),
        (said(finish="MALFORMED_FUNCTION_CALL", finishMessage="call:weather{"), FailureKind.MALFORMED),
        (PIECES + said(finish="UNEXPECTED_TOOL_CALL", usageMetadata=USAGE), FailureKind.MALFORMED),
        (PIECES + said(finish="OTHER", usageMetadata=USAGE), FailureKind.INTERRUPTED),
        (PIECES + said(finish="OF_THE_FUTURE", usageMetadata=USAGE), FailureKind.INTERRUPTED),
        (PIECES + said(text("hello"), finish="FINISH_REASON_UNSPECIFIED"), FailureKind.INTERRUPTED),
        (PIECES, FailureKind.INTERRUPTED),
        (b"", FailureKind.INTERRUPTED),
        (event(**error(503, "The model is overloaded.", "UNAVAILABLE")), FailureKind.SERVER_ERROR),
        (PIECES + event(**error(503, "The model is overloaded.", "UNAVAILABLE")), FailureKind.INTERRUPTED),
        (json.dumps(error(429, "slow", "RESOURCE_EXHAUSTED"), indent=2).encode(), FailureKind.RATE_LIMITED),
        (json.dumps([error(500, "oops", "INTERNAL")], indent=2).encode(), FailureKind.SERVER_ERROR),
        (PIECES + json.dumps(error(500, "oops", "INTERNAL"), indent=2).encode(), FailureKind.INTERRUPTED),
        (b"data: {nonsense}\n\n", FailureKind.MALFORMED),
        (b'data: {"candidates": 5}\n\n', FailureKind.MALFORMED),
        (said({"functionCall": {"args": {}}}), FailureKind.MALFORMED),
        (b'{"detail": "fine"}', FailureKind.MALFORMED),
        (b"<!doctype html><title>Sign in</title>\n", FailureKind.MALFORMED),
        (b"[" + b" " * (9 << 20) + b"\n", FailureKind.MALFORMED),
    ],
    ids=range(19),
)
async def test_what_goes_wrong_within_a_200(body: bytes, kind: FailureKind) -> None:
    failure = await fail(streaming(body))
    assert failure.kind is kind, failure


QUOTA = error(
    429,
    "You exceeded your current quota, please check your plan and billing details.",
    "RESOURCE_EXHAUSTED",
    detail("QuotaFailure", violations=[{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]),
    detail("RetryInfo", retryDelay="7s"),
)


@pytest.mark.parametrize("form", ["object", "list", "in the stream"])
async def test_a_spent_quota_tells_when_to_come_back(form: str) -> None:
    listed = refusing(429, [QUOTA])
    scripts = {"object": refusing(429, QUOTA), "list": listed, "in the stream": streaming(event(**QUOTA))}
    failure = await fail(scripts[form])
    assert (failure.kind, failure.status, failure.retry_after_ms) == (FailureKind.RATE_LIMITED, 429, 7000)
    assert "exceeded your current quota" in failure.message


@pytest.mark.parametrize(
    ("delay", "headers", "wait_ms"),
    [("38.804097346s", {}, 38_804), ("0s", {}, 0), ("999999999s", {}, 24 * 3600 * 1000), ("soon", {}, None),
     ("-7s", {}, None), ("7s", {"Retry_After": "2"}, 2000), ("7s", {"Retry_After": "soon"}, 7000)],
)  # fmt: skip
async def test_the_forms_of_a_retry_delay(delay: str, headers: dict[str, str], wait_ms: int | None) -> None:
    refused = error(429, "slow down", "RESOURCE_EXHAUSTED", detail("RetryInfo", retryDelay=delay))
    assert (await fail(refusing(429, refused, **headers))).retry_after_ms == wait_ms


@pytest.mark.parametrize(
    ("code", "message", "status", "details", "kind"),
    [
        (400, "API key not valid.", "INVALID_ARGUMENT", [detail("ErrorInfo", reason="API_KEY_INVALID")],
         FailureKind.AUTH),
        (400, "API key expired.", "INVALID_ARGUMENT", [detail("ErrorInfo", reason="API_KEY_INVALID")],
         FailureKind.AUTH),
        (400, "User location is not supported for the API use.", "FAILED_PRECONDITION", [], FailureKind.AUTH),
        (403, "Method doesn't allow unregistered callers", "PERMISSION_DENIED", [], FailureKind.AUTH),
        (400, "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
         "INVALID_ARGUMENT", [], FailureKind.CONTEXT_TOO_LONG),
        (400, "The input token count exceeds the maximum number of tokens allowed 1048576.", "INVALID_ARGUMENT", [],
         FailureKind.CONTEXT_TOO_LONG),
        (400, "Invalid value at 'contents[0]'", "INVALID_ARGUMENT", [], FailureKind.BAD_REQUEST),
        (404, "models/x is not found for API version v1beta", "NOT_FOUND", [], FailureKind.BAD_REQUEST),
        (500, "An internal error has occurred.", "INTERNAL", [], FailureKind.SERVER_ERROR),
        (503, "The model is overloaded.", "UNAVAILABLE", [], FailureKind.SERVER_ERROR),
        (504, "The request timed out.", "DEADLINE_EXCEEDED", [], FailureKind.SERVER_ERROR),
    ],
)  # fmt: skip
async def test_refusals(code: int, message: str, status: str, details: list[Any], kind: FailureKind) -> None:
    failure = await fail(refusing(code, error(code, message, status, *details)))
    assert (failure.kind, failure.status, failure.retry_after_ms) == (kind, code, None)
    assert message in failure.message
    assert ("check GEMINI_API_KEY" in failure.message) == (kind is FailureKind.AUTH)


@pytest.mark.parametrize(
    ("refused", "kind"),
    [
        (refusing(400, error(400, f"API key not valid: {CANARY}", "INVALID_ARGUMENT")), FailureKind.AUTH),
        (streaming(event(**QUOTA)), FailureKind.RATE_LIMITED),
        (streaming(json.dumps([QUOTA]).encode()), FailureKind.RATE_LIMITED),
    ],
)
async def test_a_refused_key_gives_way_to_the_next_and_neither_is_told_or_in_the_url(
    refused: Script, kind: FailureKind
) -> None:
    async def script(exchange: Exchange) -> None:
        await (refused if exchange.headers["x-goog-api-key"] == CANARY else streaming(RECORDED))(exchange)

    async with ScriptedUpstream(script) as upstream:
        provider = Gemini(f"{upstream.url}/v1beta", keys=[SecretStr(CANARY), SecretStr(OTHER)])
        assert (await provider.chat(call(), Progress())).text == TEXT
        upstream.script = refused
        with pytest.raises(AttemptError) as caught:
            await provider.chat(call(), Progress())
        await provider.aclose()
    assert caught.value.failure.kind is kind
    assert CANARY[:12] not in caught.value.failure.encode().decode()
    assert [each.headers["x-goog-api-key"] for each in upstream.exchanges[:2]] == [CANARY, OTHER]
    assert {each.path for each in upstream.exchanges} == {f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"}
    for exchange in upstream.exchanges:
        assert "authorization" not in exchange.headers
        assert b"AIza" not in exchange.body
