"""The life of one HTTP request: read, admit, submit, answer. It is on the bus before the first byte goes out."""

import asyncio
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Final

import structlog
from pydantic_core import from_json, to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from adapters.edge import facts
from adapters.edge.answering import Answering
from adapters.edge.body import read_body
from adapters.edge.door import Asked, Door, NoRouteError
from adapters.edge.errors import JSON, STATUS, explained
from adapters.edge.ports import Edge, Submission
from adapters.edge.prefer import respond_async
from adapters.edge.responses import answered, failed, place
from router.errors import RequestFailedError
from schemas import headers as h
from schemas.failure import ErrorType
from subjects import is_token

log = structlog.get_logger(__name__)

BOM: Final = b"\xef\xbb\xbf"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
"""W3C trace context; anything else is dropped."""
EVENT_IDS: Final = "x-llm-event-ids"
"""Whoever sends `true` has in each event of a stream where it stands, and can go on behind it at another edge. Asked
for, because some clients read nothing but lines of data."""
_RESERVED = re.compile(r"seq-[0-9]+\Z")


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's idempotency key, or what stands for one that is no token; without one a new id."""
    key = headers.get("idempotency-key")
    if not key:
        return uuid.uuid4().hex
    return key if is_usable_id(key) else f"key-{sha256(key.encode()).hexdigest()[:48]}"


def is_usable_id(rid: str) -> bool:
    return is_token(rid) and not _RESERVED.match(rid)


async def exchange(edge: Edge, door: Door, request: Request) -> Response:
    """Answer a request that some door takes. What is refused before it is accepted is answered here."""
    rid = request_id(request.headers)
    try:
        client = edge.identity.caller(request.headers, rid)
        body = await read_body(request, edge.policy().limits, rid)
        asked = read(edge, door, body, request.headers, rid)
        submitted = await admitted(edge, submission(asked, client, rid, request.headers))
        wait_s = respond_async(",".join(request.headers.getlist("prefer")))
        if wait_s is None:
            return Answering(edge, door, asked, submitted, placed=request.headers.get(EVENT_IDS) == "true")
        return await accepted(edge, door, asked, submitted, wait_s)
    except RequestFailedError as refusal:
        return failed(edge, door, refusal.error, refusal.reply)
    except ClientDisconnect:
        return Response(status_code=STATUS[ErrorType.CANCELLED])  # which nobody reads


def read(edge: Edge, door: Door, body: bytes, headers: Mapping[str, str], rid: str) -> Asked:
    """Raises RequestFailedError: bad_request, no_route."""
    body = body.removeprefix(BOM)
    try:
        if b"NaN" in body or b"Infinity" in body:
            from_json(body, allow_inf_nan=False)  # JSON has no such numbers, though its readers do
        asked = door.read(body, headers, edge.policy())
    except NoRouteError as error:
        raise RequestFailedError.of(ErrorType.NO_ROUTE, rid, str(error)) from None
    except ValueError as error:
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, explained(error)) from None
    if not is_token(asked.capability):
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, "capability must be 1 to 64 of A-Z a-z 0-9 _ -")
    return asked


async def admitted(edge: Edge, submission: Submission) -> Submission:
    """Raises RequestFailedError."""
    headers = await edge.identity.admit(submission)
    if not headers:
        return submission
    return replace(submission, headers={**submission.headers, **headers})


async def accepted(edge: Edge, door: Door, asked: Asked, submission: Submission, wait_s: float) -> Response:
    """202: the request will be answered, and its answer fetched; or the answer, if it is there in `wait_s`."""
    if wait_s and not asked.sse:
        async with edge.requests.opened(submission) as pending:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    return answered(door, asked, await pending.reply())
    else:
        await edge.requests.accept(submission)
    at = place(submission.rid)
    body = {"id": submission.rid, "status": "accepted", "location": at, "events": f"{at}/events"}
    headers = {"location": at, "preference-applied": "respond-async", facts.REQUEST_ID: submission.rid}
    return Response(to_json(body), 202, headers, JSON)


def submission(asked: Asked, client: str, rid: str, headers: Mapping[str, str]) -> Submission:
    trace = headers.get(h.TRACEPARENT, "")
    return Submission(
        client, rid, asked.capability, asked.request.encode(), asked.request.deadline_ms, asked.request.stream,
        {h.TRACEPARENT: trace} if _TRACEPARENT.match(trace) else {},
        named="idempotency-key" in headers,
    )  # fmt: skip
