"""Whole HTTP responses: an answer, or an error in its caller's dialect."""

from pydantic_core import to_json
from starlette.responses import Response

from adapters.edge import facts
from adapters.edge.door import Asked, Door, Shape
from adapters.edge.errors import JSON, STATUS, error_body, upstreams_own
from adapters.edge.ports import Edge
from router.errors import RequestFailedError
from schemas.failure import Error, ErrorType
from schemas.reply import Reply


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
    # The vendors' own clients obey this one; without it they repeat what cannot succeed, or what may be running.
    may_run = error.type is ErrorType.STORAGE_UNAVAILABLE and error.spent == "unknown"
    response.raw_headers.append((b"x-should-retry", b"true" if error.retryable and not may_run else b"false"))
    if error.retry_after_ms is not None:
        response.raw_headers.append((b"retry-after", str(-(-error.retry_after_ms // 1000)).encode()))
    if status == 401:
        response.raw_headers.append((b"www-authenticate", b"Bearer"))
    return response
