"""The life of one HTTP request: read, admit, submit, answer. It is on the bus before the first byte goes out.

A caller that hangs up cancels its request; an edge that ends does not: what was accepted is answered, and can be
fetched.
"""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from hashlib import sha256
from typing import Final

import structlog
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from adapters.edge import facts
from adapters.edge.door import Asked, Door, Shape, Speech
from adapters.edge.errors import JSON, STATUS, error_body, explained, upstreams_own
from adapters.edge.ports import Edge, Submission
from adapters.edge.told import Told, has_content
from router.errors import LlmbusError, RequestFailedError, stop
from schemas import headers as h
from schemas.chunk import Chunk
from schemas.failure import Error, ErrorType
from schemas.reply import Reply
from subjects import is_token

log = structlog.get_logger(__name__)

BODY_S: Final = 30.0
"""What a body may take to arrive."""
SEND_S: Final = 60.0
"""A caller that takes nothing for so long is gone."""
CANCEL_S: Final = 2.0
STREAM_HEADERS: Final[facts.Pairs] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_RESERVED = re.compile(r"seq-[0-9]+\Z")


class CallerGoneError(LlmbusError):
    """Nobody listens any more."""


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's idempotency key, or what stands for one that is no token; without one a new id."""
    key = headers.get("idempotency-key")
    if not key:
        return uuid.uuid4().hex
    return key if is_token(key) and not _RESERVED.match(key) else f"key-{sha256(key.encode()).hexdigest()[:48]}"


async def exchange(edge: Edge, door: Door, request: Request) -> Response:
    """Answer a request that some door takes. What is refused before it is accepted is answered here."""
    rid = request_id(request.headers)
    try:
        client = edge.identity.caller(request.headers, rid)
        body = await read_body(request, edge.policy().limits.max_body_bytes, rid)
        asked = read(edge, door, body, request.headers, rid)
        submission = _submission(asked, client, rid, request.headers)
        if respond_async(request.headers):
            return await accepted(edge, submission)
        return Answering(edge, door, asked, await admitted(edge, submission))
    except RequestFailedError as refusal:
        return refused(refusal.error, door.shape)


def read(edge: Edge, door: Door, body: bytes, headers: Mapping[str, str], rid: str) -> Asked:
    """Raises RequestFailedError: bad_request."""
    try:
        asked = door.read(body, headers, edge.policy())
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
    return Submission(
        submission.client, submission.rid, submission.capability, submission.body, submission.deadline_ms,
        submission.stream, {**submission.headers, **headers},
    )  # fmt: skip


def respond_async(headers: Mapping[str, str]) -> bool:
    return "respond-async" in headers.get("prefer", "")


async def accepted(edge: Edge, submission: Submission) -> Response:
    """202: the request will be answered, and its answer fetched."""
    await edge.requests.accept(await admitted(edge, submission))
    place = f"/v1/requests/{submission.rid}"
    body = {"id": submission.rid, "status": "accepted", "location": place, "events": f"{place}/events"}
    headers = {"location": place, "preference-applied": "respond-async", facts.REQUEST_ID: submission.rid}
    return Response(to_json(body), 202, headers, JSON)


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
    """Raises RequestFailedError: payload_too_large, bad_request."""
    content_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if content_type not in (JSON, "text/plain") and not content_type.endswith("+json"):
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, f"send {JSON}, not {content_type[:64]!r}")
    if int(_digits(request.headers.get("content-length", ""))) > limit:
        raise _too_large(rid, limit)
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(rid, limit)
                parts.append(part)
    except TimeoutError:
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, f"the body took over {BODY_S:g} s") from None
    return b"".join(parts)


def _too_large(rid: str, limit: int) -> RequestFailedError:
    return RequestFailedError.of(ErrorType.PAYLOAD_TOO_LARGE, rid, f"at most {limit} bytes are taken")


def _digits(length: str) -> str:
    return length if length.isascii() and length.isdigit() and len(length) < 20 else "0"


def _submission(asked: Asked, client: str, rid: str, headers: Mapping[str, str]) -> Submission:
    trace = headers.get(h.TRACEPARENT)
    return Submission(
        client, rid, asked.capability, asked.request.encode(), asked.request.deadline_ms, asked.request.stream,
        {h.TRACEPARENT: trace} if trace and trace.isascii() and len(trace) < 128 else {},
    )  # fmt: skip


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Raises CallerGoneError within the block as soon as the caller has hung up."""
    gone = False

    async def watch(limit: asyncio.Timeout) -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        if not limit.expired():
            limit.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.timeout(None) as limit:
            watching = asyncio.create_task(watch(limit))
            try:
                yield
            finally:
                await stop(watching)
    except TimeoutError:
        if gone:
            raise CallerGoneError("the caller hung up") from None
        raise


class _Out:
    """The response as it goes out; pings may come between its parts."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self.begun = False
        self.written_s = asyncio.get_running_loop().time()

    async def begin(self, pairs: facts.Pairs) -> None:
        if not self.begun:
            self.begun = True
            await self._put({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *pairs]})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        await self._put({"type": "http.response.body", "body": data, "more_body": more})

    async def _put(self, message: Message) -> None:
        async with self._turn, asyncio.timeout(SEND_S):
            await self._send(message)
            self.written_s = asyncio.get_running_loop().time()


class Answering(Response):
    """The answer to an admitted request, whole or as a stream, while its caller listens."""

    def __init__(self, edge: Edge, door: Door, asked: Asked, submission: Submission) -> None:
        super().__init__()
        self._edge = edge
        self._door = door
        self._asked = asked
        self._submission = submission
        self._rid = submission.rid

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = _Out(send)
        try:
            async with while_connected(receive):
                try:
                    response = await (self._stream(out) if self._asked.sse else self._plain())
                except RequestFailedError as refusal:
                    response = await self._failed(out, refusal.error, refusal.reply)
                except Exception:
                    log.exception("edge.failed", rid=self._rid)
                    words = "the edge failed; see its log. The request may have been accepted: look for it by its id"
                    error = Error.of(ErrorType.INTERNAL, self._rid, words, spent="unknown")
                    response = await self._failed(out, error, None)
                if response is not None:
                    await response(scope, receive, send)
        except (CallerGoneError, TimeoutError, OSError):
            await self._withdraw()

    async def _plain(self) -> Response:
        async with self._edge.requests.opened(self._submission) as pending:
            reply = await pending.reply()
        if reply.error is not None:
            raise RequestFailedError(reply.error, reply)
        response = Response(to_json(self._door.answer(self._asked, reply)), media_type=JSON)
        response.raw_headers += facts.of_reply(reply)
        return response

    async def _stream(self, out: _Out) -> None:
        speech = self._door.speech(self._asked, self._rid)
        async with self._edge.requests.opened(self._submission) as pending, self._pinging(out, speech):
            if not self._submission.stream:
                await self._finish(out, speech, Told(), await pending.reply())
                return
            async with aclosing(pending.items()) as items:
                await self._pieces(out, speech, items)

    async def _pieces(self, out: _Out, speech: Speech, items: AsyncIterator[Chunk | Reply]) -> None:
        told, first = Told(), None
        async for item in items:
            if isinstance(item, Reply):
                await self._finish(out, speech, told, item)
                return
            first = item if item.n == 0 else first
            if not told.continues(item):
                words = "the attempt that was answering broke off; the whole answer can be fetched once it is there"
                raise RequestFailedError.of(ErrorType.UPSTREAM_INTERRUPTED, self._rid, words, spent="unknown")
            if has_content(item):
                if not out.begun:
                    await out.begin(facts.of_chunk(self._rid, first or item))
                piece = item if told or first is None else _named(item, first)
                told.add(item)
                await out.write(speech.piece(piece))

    async def _finish(self, out: _Out, speech: Speech, told: Told, reply: Reply) -> None:
        if reply.error is not None:
            raise RequestFailedError(reply.error, reply)
        rest = told.rest(reply)
        if rest is None:
            words = "what was sent is not how the answer begins; fetch the whole one"
            raise RequestFailedError.of(ErrorType.UPSTREAM_INTERRUPTED, self._rid, words, spent="yes")
        await out.begin(facts.of_reply(reply))
        await out.write(b"".join(map(speech.piece, rest)) + speech.end(reply), more=False)

    async def _failed(self, out: _Out, error: Error, reply: Reply | None) -> Response | None:
        """A status while there is a choice; else the end of the stream says so, and cannot be taken for a whole one."""
        shape = self._door.shape
        if out.begun:
            speech = self._door.speech(self._asked, self._rid)
            await out.write(speech.error(error, STATUS[error.type]), more=False)
            return None
        own = upstreams_own(reply, shape, self._edge.policy()) if reply else None
        return refused(error, shape, own=own, more=facts.of_reply(reply) if reply else None)

    @asynccontextmanager
    async def _pinging(self, out: _Out, speech: Speech) -> AsyncIterator[None]:
        """While nothing comes, say that it lives."""

        async def ping() -> None:
            while True:
                quiet_s = asyncio.get_running_loop().time() - out.written_s
                if quiet_s >= self._edge.ping_s:
                    await out.begin(facts.of_request(self._rid))
                    await out.write(speech.ping)
                else:
                    await asyncio.sleep(self._edge.ping_s - quiet_s)

        pings = asyncio.create_task(ping())
        try:
            yield
        finally:
            await stop(pings)

    async def _withdraw(self) -> None:
        """As well as that can be done in a short time."""
        with suppress(LlmbusError, TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                await self._edge.requests.cancel(self._submission.client, self._rid)


def _named(chunk: Chunk, first: Chunk) -> Chunk:
    """The first piece with content says who answers, though that came with an empty one before it."""
    return chunk.model_copy(update={"model": first.model, "node": first.node, "provider": first.provider})
