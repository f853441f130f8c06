"""`llmbus schema`: the messages of the bus as JSON Schema, and the HTTP edge as OpenAPI."""

from pkgutil import resolve_name
from typing import Annotated, Any

import typer

from ops.commands.options import Json

MESSAGES = {
    "request": "schemas.request:LlmRequest",
    "work": "schemas.work:WorkItem",
    "outcome": "schemas.outcome:Outcome",
    "reply": "schemas.reply:Reply",
    "chunk": "schemas.chunk:Chunk",
    "heartbeat": "schemas.heartbeat:Heartbeat",
    "health": "schemas.heartbeat:Health",
    "fleet_health": "schemas.health:FleetHealth",
    "decided": "schemas.decision:Decided",
    "attempt_started": "schemas.event:AttemptStarted",
    "attempt_ended": "schemas.event:AttemptEnded",
    "replied": "schemas.event:Replied",
    "policy": "schemas.policy:Policy",
    "client": "schemas.client:ApiClient",
}


def schema(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help=f"One of {', '.join(MESSAGES)}; all of them without it.")
    ] = None,
    openapi: Annotated[bool, typer.Option("--openapi", help="The OpenAPI document of the HTTP edge instead.")] = False,
    as_json: Json = False,
) -> None:
    """Print the JSON Schema of the messages, or the OpenAPI document of the HTTP edge."""
    from ops.commands.screen import print_json
    from router.errors import LlmbusError

    if openapi:
        from adapters.edge.app import openapi_document

        print_json(openapi_document())
    elif name is None:
        print_json({each: _schema(each) for each in MESSAGES})
    elif name in MESSAGES:
        print_json(_schema(name))
    else:
        raise LlmbusError(f"there is no message {name!r}; there are: {', '.join(MESSAGES)}")


def _schema(name: str) -> dict[str, Any]:
    made: dict[str, Any] = resolve_name(MESSAGES[name]).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
