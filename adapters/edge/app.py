"""The doors of the edge as an ASGI application."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from adapters.edge.door import Door, Shape
from adapters.edge.exchange import exchange, refused, request_id
from adapters.edge.openai_chat import ChatCompletionRequest, ChatCompletions
from adapters.edge.openai_embeddings import Embeddings, EmbeddingsRequest
from adapters.edge.ports import Edge
from router.errors import RequestFailedError
from schemas.failure import Error, ErrorType

Handler = Callable[[Request], Awaitable[Response]]

REFUSALS: Final = {404: ErrorType.NO_ROUTE, 405: ErrorType.BAD_REQUEST}


def create_app(edge: Edge) -> FastAPI:
    app = FastAPI(title="llmbus", summary="Every LLM client on a bus that loses nothing.", redoc_url=None)
    _post(app, edge, "/v1/chat/completions", ChatCompletions(), ChatCompletionRequest, "OpenAI")
    _post(app, edge, "/v1/embeddings", Embeddings(), EmbeddingsRequest, "OpenAI")
    app.exception_handler(HTTPException)(_no_such_door)
    app.exception_handler(RequestFailedError)(_refused)
    return app


def _post(app: FastAPI, edge: Edge, path: str, door: Door, body: type[Any], tag: str) -> None:
    async def handle(request: Request) -> Response:
        return await exchange(edge, door, request)

    schema = {"application/json": {"schema": body.model_json_schema(ref_template="#/components/schemas/{model}")}}
    app.post(path, tags=[tag], name=path, openapi_extra={"requestBody": {"content": schema, "required": True}})(handle)


async def _no_such_door(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    kind = REFUSALS.get(status, ErrorType.BAD_REQUEST)
    words = f"{request.method} {request.url.path[:128]} is no door of this edge; see /docs"
    response = refused(Error.of(kind, request_id(request.headers), words), shape_of(request.url.path))
    response.status_code = status
    return response


async def _refused(request: Request, error: RequestFailedError) -> Response:
    return refused(error.error, shape_of(request.url.path))


def shape_of(path: str) -> Shape:
    """How errors look at a path."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") and not path.startswith("/v1/requests") else "native"
