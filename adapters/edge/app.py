"""The doors of the edge as an ASGI application.

A door is added with one line in `create_app`: `_post` for one whose requests go on the bus (a `Door`), `_on` for any
other (a coroutine of the edge and the request that returns a response or raises RequestFailedError). What `/docs`
says about it, with examples that the tests run as written, is its entry in `examples.py`; `openapi.py` adds what is the
same for all: errors, headers, keys.
"""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, Final, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from adapters.edge import batch, fleet_doors
from adapters.edge.anthropic_messages import Messages, MessagesRequest
from adapters.edge.count_tokens import count_tokens
from adapters.edge.door import Door, Shape
from adapters.edge.exchange import exchange, request_id
from adapters.edge.openai_chat import ChatCompletionRequest, ChatCompletions
from adapters.edge.openai_embeddings import Embeddings, EmbeddingsRequest
from adapters.edge.openai_models import get_model, list_models
from adapters.edge.openai_responses import ResponseRequest, Responses
from adapters.edge.openapi import DURABLE, describe
from adapters.edge.own_doors import ApiChat, ApiChatRequest, Route, RouteRequest
from adapters.edge.ports import Edge
from adapters.edge.requests_door import requests_door
from adapters.edge.responses import refused
from router.errors import RequestFailedError
from schemas.failure import Error, ErrorType

Handle = Callable[[Edge, Request], Awaitable[Response]]

ROLES: Final = ("architect", "coder", "reviewer")
"""Of the policy's models, that have a door of their own."""
PAGE: Final = files("adapters.edge").joinpath("static/docs.html").read_bytes()
PAGE_MAY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
"""Nothing from elsewhere: an edge may stand where there is no internet."""
REFUSALS: Final = {404: ErrorType.NO_ROUTE, 405: ErrorType.BAD_REQUEST}


def create_app(edge: Edge) -> FastAPI:
    app = FastAPI(
        title="llmbus", summary="Every LLM client on a bus that loses nothing.", docs_url=None, redoc_url=None
    )
    _post(app, edge, "/v1/chat/completions", ChatCompletions(), ChatCompletionRequest, "OpenAI")
    _own_doors(app, edge)
    app.include_router(requests_door(edge))
    _post(app, edge, "/v1/embeddings", Embeddings(), EmbeddingsRequest, "OpenAI")
    _post(app, edge, "/v1/messages", Messages(), MessagesRequest, "Anthropic")
    _on(app, edge, "POST", "/v1/messages/count_tokens", count_tokens, "Anthropic", MessagesRequest)
    _on(app, edge, "GET", "/", _greeting, "About")
    _on(app, edge, "HEAD", "/", _greeting, "About")
    _post(app, edge, "/v1/responses", Responses(), ResponseRequest, "OpenAI")
    _on(app, edge, "GET", "/v1/models", list_models, "OpenAI")
    _on(app, edge, "GET", "/v1/models/{model:path}", get_model, "OpenAI")
    app.exception_handler(HTTPException)(_no_such_door)
    app.exception_handler(RequestValidationError)(_bad_query)
    app.exception_handler(RequestFailedError)(_refused)
    app.exception_handler(Exception)(_failed)
    app.add_route("/docs", _docs, include_in_schema=False)
    describe(app, shape_of)
    return app


async def _greeting(edge: Edge, request: Request) -> Response:
    """Some clients look here first whether anybody is at home."""
    return PlainTextResponse("llmbus: send requests to one of the endpoints that /docs describes\n")


def openapi_document() -> dict[str, Any]:
    """What `/openapi.json` says, without an edge."""

    class Nobody:
        def __getattr__(self, name: str) -> Any:
            return self

    return create_app(cast("Edge", Nobody())).openapi()


def _post(app: FastAPI, edge: Edge, path: str, door: Door, body: type[BaseModel], tag: str) -> None:
    """A door whose requests go on the bus; `body` is what it reads."""

    async def handle(edge: Edge, request: Request) -> Response:
        return await exchange(edge, door, request)

    _on(app, edge, "POST", path, handle, tag, body, durable=True)


def _on(
    app: FastAPI, edge: Edge, method: str, path: str, handle: Handle, tag: str, body: type[BaseModel] | None = None, *,
    durable: bool = False,
) -> None:  # fmt: skip
    """Any other endpoint. A parameter of its path needs no more than its name in braces."""

    async def endpoint(request: Request) -> Response:
        return await handle(edge, request)

    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        tags=[tag],
        name=path,
        response_model=None,
        openapi_extra=_extra(body, durable),
    )


def _extra(body: type[BaseModel] | None, durable: bool) -> dict[str, Any]:
    extra: dict[str, Any] = {DURABLE: True} if durable else {}
    if body is not None:
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        extra["requestBody"] = {"content": {"application/json": {"schema": schema}}, "required": True}
    return extra


async def _docs(_request: Request) -> Response:
    return Response(PAGE, media_type="text/html", headers={"content-security-policy": PAGE_MAY})


def _own_doors(app: FastAPI, edge: Edge) -> None:
    tag = "Own doors"
    route = Route(edge.fleet, edge.policy)
    _post(app, edge, "/route", route, RouteRequest, tag)
    for role in ROLES:
        _post(app, edge, f"/{role}", Route(edge.fleet, edge.policy, role), RouteRequest, tag)
    _post(app, edge, "/api/chat", ApiChat(), ApiChatRequest, tag)
    batch.add(app, edge, route, tag)
    fleet_doors.add(app, edge, tag)


async def _no_such_door(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    kind = REFUSALS.get(status, ErrorType.BAD_REQUEST)
    door = request.url.path[:128]
    if allowed := (error.headers or {}).get("Allow"):
        words = f"{door} takes {allowed}, not {request.method}; see /docs"
    else:
        words = f"{request.method} {door} is no door of this edge; see /docs"
    response = refused(Error.of(kind, request_id(request.headers), words), shape_of(request.url.path))
    response.status_code = status
    response.headers.update(error.headers or {})
    return response


async def _bad_query(request: Request, error: RequestValidationError) -> Response:
    found = error.errors()[0]
    words = f"{found['loc'][-1]}: {found['msg']}"
    return refused(Error.of(ErrorType.BAD_REQUEST, request_id(request.headers), words), shape_of(request.url.path))


async def _refused(request: Request, error: RequestFailedError) -> Response:
    return refused(error.error, shape_of(request.url.path))


async def _failed(request: Request, _error: Exception) -> Response:
    words = "the edge failed; see its log"
    return refused(
        Error.of(ErrorType.INTERNAL, request_id(request.headers), words, spent="unknown"), shape_of(request.url.path)
    )


def shape_of(path: str) -> Shape:
    """How errors look at a path."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") and not path.startswith("/v1/requests") else "native"
