"""The life of one HTTP request: read, admit, submit, answer. It is on the bus before the first byte goes out.

A caller that hangs up cancels its request; an edge that ends does not: what was accepted is answered, and can be
fetched.
"""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Final

import structlog
from pydantic_core import from_json, to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.edge import facts
from adapters.edge.door import Asked, Door, NoRouteError, Shape, Speech
from adapters.edge.errors import JSON, STATUS, error_body, explained, upstreams_own
from adapters.edge.line import CallerGoneError, Line
from adapters.edge.ports import Edge, Pending, Submission
from adapters.edge.prefer import respond_async
from adapters.edge.told import Told, has_content
from router.errors import RequestFailedError
from schemas import headers as h
from schemas.chunk import Chunk
from schemas.failure import Error, ErrorType
from schemas.reply import Reply
from subjects import is_token

log = structlog.get_logger(__name__)

BODY_S: Final = 30.0
"""What a body may take to arrive."""
BOM: Final = b"\xef\xbb\xbf"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
"""W3C trace context; anything else is dropped."""
EVENT_IDS: Final = "x-llm-event-ids"
"""Whoever sends `true` has in each event of a stream where it stands, and can go on behind it at another edge. Asked
for, because some clients read nothing but lines of data."""
_RESERVED = re.compile(r"seq-[0-9]+\Z")


class Room:
    """What all bodies that are still arriving may hold together, in this process."""

    def __init__(self, most_bytes: int) -> None:
        self._left_bytes = most_bytes

    def take(self, size: int) -> bool:
        if size > self._left_bytes:
            return False
        self._left_bytes -= size
        return True

    def give_back(self, size: int) -> None:
        self._left_bytes += size


ARRIVING: Final = Room(64_000_000)


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
        body = await read_body(request, edge.policy().limits.max_body_bytes, rid)
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


def place(rid: str) -> str:
    """Where a request is looked at."""
    return f"/v1/requests/{rid}"


def answered(door: Door, asked: Asked, reply: Reply) -> Response:
    """Raises RequestFailedError when the reply is an error."""
    if reply.error is not None:
        raise RequestFailedError(reply.error, reply)
    response = Response(to_json(door.answer(asked, reply)), media_type=JSON)
    response.raw_headers += facts.of_reply(reply)
    return response


def failed(edge: Edge, door: Door, error: Error, reply: Reply | None) -> Response:
    own = upstreams_own(reply, door.shape, edge.policy()) if reply else None
    return refused(error, door.shape, own=own, more=facts.of_reply(reply) if reply else None)


def refused(
    error: Error, shape: Shape, *, own: tuple[int, bytes] | None = None, more: facts.Pairs | None = None
) -> Response:
    """The error in the caller's dialect."""
    status = STATUS[error.type] if own is None else own[0]
    body = to_json(error_body(error, status, shape)) if own is None else own[1]
    response = Response(body, status, media_type=JSON)
    response.raw_headers += more or facts.of_request(error.request_id)
    # The vendors' own clients obey this one; without it they repeat what cannot succeed.
    response.raw_headers.append((b"x-should-retry", b"true" if error.retryable else b"false"))
    if error.retry_after_ms is not None:
        response.raw_headers.append((b"retry-after", str(-(-error.retry_after_ms // 1000)).encode()))
    if status == 401:
        response.raw_headers.append((b"www-authenticate", b"Bearer"))
    return response


async def read_body(request: Request, limit: int, rid: str) -> bytes:
    """Raises RequestFailedError: payload_too_large, bad_request, overloaded."""
    content_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if content_type not in (JSON, "text/plain") and not content_type.endswith("+json"):
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, f"send {JSON}, not {content_type[:64]!r}")
    if int(_digits(request.headers.get("content-length", ""))) > limit:
        raise _too_large(rid, limit)
    parts: list[bytes] = []
    size = taken = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(rid, limit)
                if not ARRIVING.take(len(part)):
                    words = "too many large requests are arriving at once"
                    raise RequestFailedError.of(ErrorType.OVERLOADED, rid, words, retry_after_ms=1_000)
                taken = size
                parts.append(part)
    except TimeoutError:
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, f"the body took over {BODY_S:g} s") from None
    finally:
        ARRIVING.give_back(taken)
    return b"".join(parts)


def _too_large(rid: str, limit: int) -> RequestFailedError:
    return RequestFailedError.of(ErrorType.PAYLOAD_TOO_LARGE, rid, f"at most {limit} bytes are taken")


def _digits(length: str) -> str:
    return length if length.isascii() and length.isdigit() and len(length) < 20 else "0"


def submission(asked: Asked, client: str, rid: str, headers: Mapping[str, str]) -> Submission:
    trace = headers.get(h.TRACEPARENT, "")
    return Submission(
        client, rid, asked.capability, asked.request.encode(), asked.request.deadline_ms, asked.request.stream,
        {h.TRACEPARENT: trace} if _TRACEPARENT.match(trace) else {},
        named="idempotency-key" in headers,
    )  # fmt: skip


class Answering(Response):
    """The answer to an admitted request, whole or as a stream, while its caller listens."""

    def __init__(self, edge: Edge, door: Door, asked: Asked, submission: Submission, *, placed: bool = False) -> None:
        super().__init__()
        self._placed = placed
        self._edge = edge
        self._door = door
        self._asked = asked
        self._submission = submission
        self._rid = submission.rid

    @cached_property
    def _speech(self) -> Speech:
        return self._door.speech(self._asked, self._rid)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = Line(receive, send)
        with suppress(CallerGoneError):
            try:
                response = await self._answer(line)
            except asyncio.CancelledError:
                # Not passed on: this task is the server's, which ends, awaits it no more and would call it our failure.
                words = f"this edge has ended, and the request goes on: its answer will be at {place(self._rid)}"
                error = Error.of(ErrorType.UPSTREAM_INTERRUPTED, self._rid, words, spent="unknown")
                response = await self._failed(line, error, None)
            if response is not None:
                await response(scope, receive, line.send)

    async def _answer(self, line: Line) -> Response | None:
        """The response that is still to be sent. Raises CallerGoneError."""
        try:
            async with self._edge.requests.opened(self._submission) as pending:
                try:
                    async with line.listened_to():
                        if not self._asked.sse:
                            return answered(self._door, self._asked, await pending.reply())
                        await self._stream(line, pending)
                        return None
                except CallerGoneError:
                    await pending.withdraw()
                    raise
        except RequestFailedError as refusal:
            return await self._failed(line, refusal.error, refusal.reply)
        except CallerGoneError:
            raise
        except Exception:
            log.exception("edge.failed", rid=self._rid)
            words = f"the edge failed; see its log. The request may have been accepted: look at {place(self._rid)}"
            return await self._failed(line, Error.of(ErrorType.INTERNAL, self._rid, words, spent="unknown"), None)

    async def _stream(self, line: Line, pending: Pending) -> None:
        async with line.pinging(self._speech.ping, self._edge.ping_s, facts.of_request(self._rid)):
            if not self._submission.stream:
                await self._finish(line, Told(), await pending.reply())
                return
            async with aclosing(pending.items()) as items:
                await self._pieces(line, items)

    async def _pieces(self, line: Line, items: AsyncIterator[Chunk | Reply]) -> None:
        told, first = Told(), None
        async for item in items:
            if isinstance(item, Reply):
                await self._finish(line, told, item)
                return
            if item.n == 0 or (first and first.attempt_id != item.attempt_id):
                first = item
            if not told.continues(item):
                words = f"the attempt that was answering broke off; the whole answer will be at {place(self._rid)}"
                raise RequestFailedError.of(ErrorType.UPSTREAM_INTERRUPTED, self._rid, words, spent="unknown")
            if told.follows(item) and has_content(item):
                if not line.begun:
                    await line.begin(facts.of_chunk(self._rid, first or item))
                piece = item if told or first is None else _named(item, first)
                told.add(item)
                at = f"id: {item.attempt_id}:{item.n}\n".encode() if self._placed else b""
                await line.write(at + self._speech.piece(piece))

    async def _finish(self, line: Line, told: Told, reply: Reply) -> None:
        if reply.error is not None:
            raise RequestFailedError(reply.error, reply)
        rest = told.rest(reply)
        if rest is None:
            words = f"what was sent is not how the answer begins; the whole one is at {place(self._rid)}"
            raise RequestFailedError.of(ErrorType.UPSTREAM_INTERRUPTED, self._rid, words, spent="yes")
        await line.begin(facts.of_reply(reply))
        await line.write(b"".join(map(self._speech.piece, rest)) + self._speech.end(reply), more=False)

    async def _failed(self, line: Line, error: Error, reply: Reply | None) -> Response | None:
        """A status while there is a choice; else the end of the stream says so, and cannot be taken for a whole one."""
        if not line.begun:
            return failed(self._edge, self._door, error, reply)
        await line.write(self._speech.error(error, STATUS[error.type]), more=False)
        return None


def _named(chunk: Chunk, first: Chunk) -> Chunk:
    """The first piece with content says who answers, though that came with an empty one before it."""
    return chunk.model_copy(update={"model": first.model, "node": first.node, "provider": first.provider})
