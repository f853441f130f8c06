"""The durable requests of a client: how each stands, its events as they come or came, its end, and the list."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.edge import facts, sse
from adapters.edge.errors import JSON, STATUS, error_body
from adapters.edge.exchange import request_id
from adapters.edge.line import CallerGoneError, Line
from adapters.edge.ports import Edge
from adapters.edge.states import ENDED, RequestPage, RequestState
from adapters.edge.told import has_content
from router.errors import RequestFailedError
from schemas.chunk import Chunk
from schemas.failure import ErrorType
from schemas.reply import Reply
from subjects import is_token

BEGINNING: Final = ("0.0", -1)
END: Final = "end"
_PLACE = re.compile(r"([0-9]{1,9}\.[0-9]{1,9}):([0-9]{1,9}|end)\Z")

Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
Before = Annotated[int | None, Query(ge=1, description="What the page before gave.")]
After = Annotated[str | None, Query(description="As `Last-Event-ID`: begin behind this event.")]


def requests_door(edge: Edge) -> APIRouter:
    router = APIRouter(prefix="/v1/requests", tags=["Requests"])

    @router.get("", response_model=RequestPage, summary="Your requests, newest first")
    async def listed(request: Request, limit: Limit = 20, before: Before = None) -> Response:
        own = request_id(request.headers)
        return _json(await edge.requests.page(edge.identity.caller(request.headers, own), limit, before), own)

    @router.get("/{rid}", response_model=RequestState, summary="How a request stands")
    async def state(request: Request, rid: str) -> Response:
        return _told(await _known(edge, edge.identity.caller(request.headers, _shown(rid)), rid))

    @router.delete("/{rid}", response_model=RequestState, summary="Cancel a request")
    async def cancel(request: Request, rid: str) -> Response:
        """202 while it has not ended yet."""
        client = edge.identity.caller(request.headers, _shown(rid))
        told = await _known(edge, client, rid)
        if told.state not in ENDED:
            await edge.requests.cancel(client, rid)
            told = await _known(edge, client, rid)
        return _told(told, 200 if told.state in ENDED else 202)

    @router.get(
        "/{rid}/events", response_class=Response, summary="A request's events",
        responses={200: {"content": {"text/event-stream": {}}}, 204: {"description": "There are no more."}},
    )  # fmt: skip
    async def events(request: Request, rid: str, after: After = None) -> Response:
        """Server-sent: `piece`s of the answer, `attempt` when it starts over, `reply` or `error` as the last.

        Their ids are `<attempt>:<piece>`. Whoever was cut off goes on with `Last-Event-ID`, here or at another edge.
        Pieces are there for requests that stream, and for some minutes; one that was lost is left out. The reply is
        whole, and there for a day at least.
        """
        client = edge.identity.caller(request.headers, _shown(rid))
        place = _place(rid, after or request.headers.get("last-event-id"))
        told = await _known(edge, client, rid)
        if place is None:
            return Response(status_code=204)  # what makes a browser's EventSource stop
        if told.state in ENDED and told.reply is None:
            raise RequestFailedError.of(ErrorType.NO_ROUTE, rid, "its reply is kept no longer")
        return Watching(edge, client, rid, place)

    return router


class Watching(Response):
    """The events of a request, for as long as its caller listens; any number may."""

    def __init__(self, edge: Edge, client: str, rid: str, place: tuple[str, int]) -> None:
        super().__init__()
        self._edge = edge
        self._client = client
        self._rid = rid
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line, pairs = Line(receive, send), facts.of_request(self._rid)
        if task := asyncio.current_task():
            self._edge.watching.add(task)
            task.add_done_callback(self._edge.watching.discard)
        with suppress(CallerGoneError):
            await line.begin(pairs)
            try:
                async with (
                    line.listened_to(),
                    line.pinging(sse.PING, self._edge.ping_s, pairs),
                    aclosing(self._events()) as events,
                ):
                    async for event, more in events:
                        await line.write(event, more=more)
            except asyncio.CancelledError:
                # The server ends, and awaits this task no more: whoever listens goes on at another edge.
                await line.write(b"", more=False)

    async def _events(self) -> AsyncGenerator[tuple[bytes, bool], None]:
        """Each, and whether more may come."""
        watched = self._edge.requests.watch(self._client, self._rid, *self._place)
        attempt = self._place[0]
        try:
            async with aclosing(watched) as items:
                async for item in items:
                    if isinstance(item, Reply):
                        yield _last(item, attempt), False
                        return
                    yield _piece(item, over=attempt not in (BEGINNING[0], item.attempt_id)), True
                    attempt = item.attempt_id
        except RequestFailedError as refusal:
            yield sse.event(error_body(refusal.error, STATUS[refusal.error.type], "native"), name="error"), False


def _piece(chunk: Chunk, *, over: bool) -> bytes:
    """As one event or two: that it starts over may be told with its first content."""
    place = f"{chunk.attempt_id}:{chunk.n}"
    who = {"model": chunk.model, "node": chunk.node, "provider": chunk.provider}
    told = b""
    if over or not has_content(chunk):
        begun = {"attempt": chunk.attempt_id, **_given(who)}
        told = sse.event(begun, name="attempt", event_id=None if has_content(chunk) else place)
    if has_content(chunk):
        call = chunk.tool_call.model_dump(exclude_none=True) if chunk.tool_call else None
        said = {"text": chunk.text or None, "reasoning": chunk.reasoning, "tool_call": call, **who}
        told += sse.event({"attempt": chunk.attempt_id, "n": chunk.n, **_given(said)}, name="piece", event_id=place)
    return told


def _last(reply: Reply, attempt: str) -> bytes:
    place = f"{reply.attempts[-1].attempt_id if reply.attempts else attempt}:{END}"
    if reply.error is not None:
        body = {**error_body(reply.error, STATUS[reply.error.type], "native"), "reply": reply}
        return sse.event(body, name="error", event_id=place)
    return sse.event(reply, name="reply", event_id=place)


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


async def _known(edge: Edge, client: str, rid: str) -> RequestState:
    """Raises RequestFailedError: no_route."""
    told = await edge.requests.state(client, rid) if is_token(rid) else None
    if told is None:
        words = "you have no request of this id, or it is not decided yet and others have come since"
        raise RequestFailedError.of(ErrorType.NO_ROUTE, _shown(rid), words)
    return told


def _shown(rid: str) -> str:
    return rid if is_token(rid) else "unknown"


def _place(rid: str, told: str | None) -> tuple[str, int] | None:
    """Behind which piece of which attempt to begin; None behind the end. Raises RequestFailedError: bad_request."""
    if not told:
        return BEGINNING
    match = _PLACE.match(told)
    if match is None:
        words = "Last-Event-ID and `after` are the id of an event as it was sent, e.g. 1.1:41"
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, _shown(rid), words)
    return None if match[2] == END else (match[1], int(match[2]))


def _told(told: RequestState, status: int = 200) -> Response:
    response = _json(told, told.id, status)
    if told.reply is not None:
        response.raw_headers += facts.of_reply(told.reply)[1:]
    return response


def _json(body: RequestPage | RequestState, rid: str, status: int = 200) -> Response:
    headers = {facts.REQUEST_ID: rid, "cache-control": "no-store"}
    return Response(to_json(body), status, headers, JSON)
