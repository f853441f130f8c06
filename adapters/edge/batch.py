"""`POST /batch`: many requests in one body, each durable by itself, answered side by side and told in their order.

Item n of a batch has the id `<batch>-<n>`: the same batch under the same `Idempotency-Key` answers what was answered
already, and asks only for the rest. A client's limits slow a batch down and fail none of its items, as long as these
have time.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

import structlog
from fastapi import FastAPI
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.edge import facts
from adapters.edge.body import read_body
from adapters.edge.door import Asked
from adapters.edge.errors import JSON, error_body
from adapters.edge.exchange import admitted, is_usable_id, read, request_id, submission
from adapters.edge.line import CallerGoneError, Line
from adapters.edge.own_doors import Route, RouteRequest
from adapters.edge.ports import Edge, Submission
from adapters.edge.prefer import respond_async
from adapters.edge.responses import place, refused
from router.errors import RequestFailedError
from schemas.failure import Error, ErrorType

log = structlog.get_logger(__name__)

MAX_ITEMS: Final = 1_000
AT_ONCE: Final = 32
"""Items of one batch that are on the bus at a time: no caller has all places to himself."""

Act = Callable[[Asked, Submission], Awaitable[dict[str, Any]]]


def add(app: FastAPI, edge: Edge, door: Route, tag: str) -> None:
    async def handle(request: Request) -> Response:
        """The results stand in the order of the requests, whatever became of each; 202 with `Prefer: respond-async`."""
        rid = request_id(request.headers)
        try:
            client = edge.identity.caller(request.headers, rid)
            items = read_items(await read_body(request, edge.policy().limits, rid), rid)
        except RequestFailedError as refusal:
            return refused(refusal.error, "native")
        batch = Batch(edge, door, client, rid, request.headers, items)
        at_once = respond_async(",".join(request.headers.getlist("prefer"))) is None
        return batch if at_once else await batch.accepted()

    item = RouteRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    several = {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_ITEMS}
    whole = {"type": "object", "properties": {"requests": several}, "required": ["requests"]}
    content = {JSON: {"schema": {"anyOf": [several, whole]}}}
    extra = {"requestBody": {"content": content, "required": True}}
    app.post("/batch", tags=[tag], name="/batch", openapi_extra=extra)(handle)


def read_items(body: bytes, rid: str) -> list[Any]:
    """The requests of a batch, each still to be read. Raises RequestFailedError: bad_request."""
    if not body:
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, "the body is empty; send a list of requests, see /docs")
    try:
        said = from_json(body)
    except ValueError as error:
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, f"the body is no JSON: {error}") from None
    if isinstance(said, dict):
        if said.get("stream"):
            words = "a batch is not streamed; leave `stream` out, or send `Prefer: respond-async` and watch its items"
            raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, words)
        said = said.get("requests")
    if not isinstance(said, list) or not 1 <= len(said) <= MAX_ITEMS:
        words = f'send a list of 1 to {MAX_ITEMS} requests, or {{"requests": [...]}}'
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, words)
    return said


def item_id(rid: str, index: int) -> str:
    """The request id of an item; of a batch whose id leaves no room for the number, what stands for it."""
    own = f"{rid}-{index}"
    return own if is_usable_id(own) else f"key-{sha256(rid.encode()).hexdigest()[:48]}-{index}"


class Batch(Response):
    """The answer to a batch while its caller listens; whoever hangs up cancels what is not answered yet."""

    def __init__(
        self, edge: Edge, door: Route, client: str, rid: str, headers: Mapping[str, str], items: list[Any]
    ) -> None:
        super().__init__()
        self._edge = edge
        self._door = door
        self._client = client
        self._rid = rid
        self._asked_with = headers
        self._items = items
        self._line: Line | None = None
        self._begun = time.monotonic()
        self._accepted = 0
        self._away: Error | None = None
        """The bus's, once it was found away: what was not submitted by then is not tried."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = self._line = Line(receive, send)
        with suppress(CallerGoneError):
            async with line.listened_to():
                results = await self._each(self._answer)
            good = sum("error" not in result for result in results)
            await self._told(results, 200, succeeded=good, failed=len(results) - good)(scope, receive, line.send)

    async def accepted(self) -> Response:
        """202: every good item will be answered, and its answer fetched."""
        results = await self._each(self._accept)
        good = sum("error" not in result for result in results)
        response = self._told(results, 202, accepted=good, failed=len(results) - good)
        response.headers["preference-applied"] = "respond-async"
        return response

    def _told(self, results: list[dict[str, Any]], status: int, **counts: int) -> Response:
        if self._away is not None and not self._accepted:
            return refused(self._away.model_copy(update={"request_id": self._rid}), "native")
        body = {"id": self._rid, "total": len(results), **counts, "results": results}
        return Response(to_json(body), status, {facts.REQUEST_ID: self._rid}, JSON)

    async def _each(self, act: Act) -> list[dict[str, Any]]:
        own = self._edge.identity.concurrent(self._client)
        places = asyncio.Semaphore(min(AT_ONCE, own or AT_ONCE))

        async def one(index: int, item: Any) -> dict[str, Any]:
            async with places:
                return {"index": index, **await self._one(item_id(self._rid, index), item, act)}

        async with asyncio.TaskGroup() as tasks:
            each = [tasks.create_task(one(index, item)) for index, item in enumerate(self._items)]
        return [task.result() for task in each]

    async def _one(self, rid: str, item: Any, act: Act) -> dict[str, Any]:
        """What became of an item; never an exception."""
        try:
            asked = self._read(rid, item)
            return await act(asked, await self._admitted(asked, rid))
        except RequestFailedError as refusal:
            error = refusal.error
            if error.type is ErrorType.STORAGE_UNAVAILABLE:
                self._away = self._away or error
        except Exception:
            log.exception("edge.failed", rid=rid)
            words = "the edge failed; see its log. The request may have been accepted: look for it by its id"
            error = Error.of(ErrorType.INTERNAL, rid, words, spent="unknown")
        return {"status": "error", "request_id": rid, **error_body(error, 0, "native")}

    async def _admitted(self, asked: Asked, rid: str) -> Submission:
        """What the client's limits put off is waited for while the caller listens and the item's time lasts.

        Raises RequestFailedError.
        """
        submitted = submission(asked, self._client, rid, self._asked_with)
        ends = self._begun + submitted.deadline_ms / 1000
        while True:
            try:
                return await admitted(self._edge, submitted)
            except RequestFailedError as refusal:
                error = refusal.error
                wait_s = (error.retry_after_ms or 0) / 1000
                put_off = error.type is ErrorType.RATE_LIMITED and wait_s and self._line is not None
                if not put_off or time.monotonic() + wait_s >= ends:
                    raise
            await asyncio.sleep(wait_s)

    def _read(self, rid: str, item: Any) -> Asked:
        """Raises RequestFailedError."""
        asked = read(self._edge, self._door, to_json(item), self._asked_with, rid)
        if asked.sse:
            raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, "in a batch nothing is streamed: no `stream`")
        if self._away is not None:
            raise RequestFailedError(self._away.model_copy(update={"request_id": rid, "spent": "no"}))
        return asked

    async def _answer(self, asked: Asked, submitted: Submission) -> dict[str, Any]:
        async with self._edge.requests.opened(submitted) as pending:
            self._accepted += 1
            try:
                reply = await pending.reply()
            except asyncio.CancelledError:
                if self._line is not None and self._line.gone:
                    await pending.withdraw()
                raise
        if reply.error is not None:
            raise RequestFailedError(reply.error, reply)
        return {"status": "ok", **self._door.answer(asked, reply)}

    async def _accept(self, asked: Asked, submitted: Submission) -> dict[str, Any]:
        await self._edge.requests.accept(submitted)
        self._accepted += 1
        at = place(submitted.rid)
        return {"status": "accepted", "request_id": submitted.rid, "location": at, "events": f"{at}/events"}
