"""Anthropic's `POST /v1/messages/count_tokens`: by the router's estimate: nobody knows which model reads it."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from adapters.edge import facts
from adapters.edge.anthropic_messages import Messages
from adapters.edge.body import read_body
from adapters.edge.exchange import read, request_id
from adapters.edge.ports import Edge
from adapters.edge.responses import refused
from router.errors import RequestFailedError

DOOR = Messages()


async def count_tokens(edge: Edge, request: Request) -> Response:
    rid = request_id(request.headers)
    try:
        edge.identity.caller(request.headers, rid)
        body = await read_body(request, edge.policy().limits, rid)
        asked = read(edge, DOOR, body, request.headers, rid)
    except RequestFailedError as refusal:
        return refused(refusal.error, DOOR.shape)
    response = JSONResponse({"input_tokens": edge.count_tokens(asked.request)})
    response.raw_headers += facts.of_request(rid)
    return response
