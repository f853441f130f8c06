"""The OpenAPI document of the edge: what FastAPI knows of its routes, and what is the same for all of them."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from fastapi import FastAPI

from adapters.edge.door import Shape
from adapters.edge.errors import JSON, STATUS, error_body
from adapters.edge.examples import ABOUT, ANSWERS, About
from adapters.edge.samples import LANGUAGES, samples
from adapters.edge.wishes import PREFIX, Wishes
from schemas.failure import RETRYABLE, Error, ErrorType

EVENTS: Final = "text/event-stream"
DURABLE: Final = "x-durable"
"""Of an operation whose requests go on the bus."""
TEXT: Final = (
    "Every POST is on the bus before the first byte goes out: it survives the death of this edge, and its answer can "
    "be fetched later. Where keys are asked for, send yours as `Authorization: Bearer KEY` or `x-api-key: KEY`. Errors "
    "have the shape of the path's dialect; the typed error within names its request, says whether money may have been "
    "spent (`spent`), and whether the same request under a new id may succeed (`retryable`)."
)
MEANING: Final[Mapping[ErrorType, str]] = {
    ErrorType.BAD_REQUEST: "The request cannot be read, or asks for what cannot be; its message says what would.",
    ErrorType.PAYLOAD_TOO_LARGE: "The body is larger than the policy allows.",
    ErrorType.NO_ROUTE: "Nobody can answer that: no such door, model or request.",
    ErrorType.UNAUTHORIZED: "No key, or none that is known.",
    ErrorType.FORBIDDEN: "This key may not do that.",
    ErrorType.RATE_LIMITED: "This client asks more than it may; `Retry-After` says when it may again.",
    ErrorType.BUDGET_EXCEEDED: "This client's money for today is spent.",
    ErrorType.OVERLOADED: "It would not be done in time; nothing was begun.",
    ErrorType.DEADLINE_EXCEEDED: "The request's own time ran out.",
    ErrorType.CANCELLED: "It was cancelled.",
    ErrorType.GUARDRAIL_BLOCKED: "A guardrail of the policy stopped it.",
    ErrorType.UPSTREAM_ERROR: "The provider refused or failed.",
    ErrorType.UPSTREAM_RATE_LIMITED: "The provider wants fewer requests.",
    ErrorType.UPSTREAM_TIMEOUT: "The provider said nothing in time.",
    ErrorType.UPSTREAM_INTERRUPTED: "The answer began and broke off; there is no whole one.",
    ErrorType.ALL_TARGETS_FAILED: "Everybody who could have answered failed.",
    ErrorType.POISON: "It brought down whoever tried it, and is tried no more.",
    ErrorType.STORAGE_UNAVAILABLE: "The bus is away or full; whether the request was accepted may not be known.",
    ErrorType.IDEMPOTENCY_CONFLICT: "Another request has this `Idempotency-Key`.",
    ErrorType.INTERNAL: "A fault of ours.",
}
READ_ONLY: Final = (400, 401, 403, 404, 500, 503)
"""What an operation may answer that puts nothing on the bus."""
FACTS: Final[Mapping[str, str]] = {
    "x-llm-request-id": "The request, for `/v1/requests/{id}`.",
    "x-llm-status": "ok, error or cancelled.",
    "x-llm-model": "Who answered: its name in the policy.",
    "x-llm-node": "Where.",
    "x-llm-provider": "By which provider.",
    "x-llm-cost-usd": "What the answer cost; absent when that is not known.",
    "x-llm-wasted-usd": "What attempts that failed cost.",
    "x-llm-latency-ms": "From the broker's receipt to the reply.",
    "x-llm-queue-ms": "Of that, waiting.",
    "x-llm-ttft-ms": "To the first token.",
    "x-llm-tokens-in": "Tokens read.",
    "x-llm-tokens-out": "Tokens written.",
    "x-llm-attempts": "How often it was tried.",
    "x-llm-decision": "Why this model.",
    "x-llm-policy": "The policy's revision.",
}
_DEFS: Final = "#/components/schemas/"


def describe(app: FastAPI, shape_of: Callable[[str], Shape]) -> None:
    """Let `/openapi.json` say all of it."""
    generate = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(generate(), shape_of)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and operation."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in ("get", "post", "put", "delete", "head", "patch"):
                yield method.upper(), path, operation


def _described(document: dict[str, Any], shape_of: Callable[[str], Shape]) -> dict[str, Any]:
    document["info"]["description"] = TEXT
    document["servers"] = [{"url": "/"}]
    document["security"] = [{}, {"bearer": []}, {"key": []}]
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    for method, path, operation in operations(document):
        about = ABOUT.get(f"{method} {path}")
        operation["operationId"] = re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_")
        operation["summary"] = about.summary if about else operation["summary"]
        if about:
            operation["description"] = about.text
        _hoist(operation, schemas)
        _add_parameters(path, operation, about)
        _add_body_examples(operation, about)
        _add_answers(operation, about, shape_of(path), ANSWERS.get(f"{method} {path}"))
        operation["x-codeSamples"] = [
            {"lang": LANGUAGES[label], "label": label, "title": example.title, "source": source}
            for example in (about.examples if about else ())
            for label, source in samples(method, path, example).items()
        ]
    _add_components(document["components"])
    return document


def _hoist(value: Any, schemas: dict[str, Any]) -> None:
    """pydantic keeps the parts of a schema within it; OpenAPI has one place for those of all."""
    if isinstance(value, dict):
        for name, schema in value.pop("$defs", {}).items():
            _hoist(schema, schemas)
            schemas[name] = schema
        for each in value.values():
            _hoist(each, schemas)
    elif isinstance(value, list):
        for each in value:
            _hoist(each, schemas)


def _add_parameters(path: str, operation: dict[str, Any], about: About | None) -> None:
    given = operation.setdefault("parameters", [])
    values = about.examples[0].path if about and about.examples else {}
    for name in re.findall(r"\{(\w+)\}", path):
        parameter = next((each for each in given if (each["in"], each["name"]) == ("path", name)), None)
        if parameter is None:
            parameter = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            given.append(parameter)
        if name in values:
            parameter["example"] = values[name]
    if operation.get(DURABLE):
        named = [
            "idempotency-key",
            "prefer",
            "x-llm-client",
            *(PREFIX + name.replace("_", "-") for name in Wishes.model_fields),
        ]
        given += [{"$ref": f"#/components/parameters/{name}"} for name in named]
    if not given:
        del operation["parameters"]


def _add_body_examples(operation: dict[str, Any], about: About | None) -> None:
    content = operation.get("requestBody", {}).get("content", {}).get(JSON, {})
    fields = content.get("schema", {}).get("properties", {})
    for wish in Wishes.model_fields:  # the dialect's own come first
        if wish in fields:
            fields[wish] = fields.pop(wish)
    if content and about:
        bodies = {example.title: {"value": example.body} for example in about.examples}
        content["examples"] = bodies


def _add_answers(operation: dict[str, Any], about: About | None, shape: Shape, answer: Any) -> None:
    answers: dict[str, Any] = operation.setdefault("responses", {})
    answers.pop("422", None)  # FastAPI's own, which is never sent
    good = answers.setdefault("200", {})
    good["description"] = "The answer."
    durable = operation.get(DURABLE, False)
    if durable:
        good["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in FACTS}
    content = good.setdefault("content", {JSON: {"schema": {}}})
    if answer is not None:
        content[JSON] = {"schema": _schema_of(answer), "example": answer}
    if durable:
        if about and any(isinstance(each.body, dict) and "stream" in each.body for each in about.examples):
            content[EVENTS] = {"schema": {"type": "string"}}
        accepted = {"description": "Accepted, with `Prefer: respond-async`: it will be answered."}
        answers["202"] = {**accepted, "content": {JSON: {"schema": {"$ref": f"{_DEFS}Accepted"}}}}
    for status in sorted(set(STATUS.values())) if durable else READ_ONLY:
        answers[str(status)] = {"$ref": f"#/components/responses/{shape}-{status}"}


def _schema_of(example: Any) -> dict[str, Any]:
    """What has this form; anything may be absent, and null."""
    match example:
        case dict():
            return {
                "type": ["object", "null"],
                "properties": {name: _schema_of(each) for name, each in example.items()},
            }
        case list():
            return {"type": ["array", "null"], "items": _schema_of(example[0]) if example else {}}
        case bool():
            return {"type": ["boolean", "null"]}
        case int() | float():
            return {"type": ["number", "null"]}
        case str():
            return {"type": ["string", "null"]}
        case _:
            return {}


def _add_components(components: dict[str, Any]) -> None:
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    components["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in FACTS.items()
    } | {"retry-after": {"description": "Seconds.", "schema": {"type": "integer"}}}
    components["parameters"] = dict(_parameters())
    schemas = components["schemas"]
    schemas["Error"] = Error.model_json_schema()
    schemas["Accepted"] = _schema_of({"id": "", "status": "", "location": "", "events": ""})
    _hoist(schemas["Error"], schemas)
    components["responses"] = {
        f"{shape}-{status}": _refusal(shape, status)
        for shape in ("openai", "anthropic", "native")
        for status in set(STATUS.values())
    }


def _refusal(shape: Shape, status: int) -> dict[str, Any]:
    kinds = [kind for kind, each in STATUS.items() if each == status]
    error = Error.of(kinds[0], "0f5e6f6b2d8e4c0c9d1b6a2b7c3d4e5f", MEANING[kinds[0]])
    typed = {"$ref": f"{_DEFS}Error"}
    schema: dict[str, Any] = {"type": "object", "required": ["error"]}
    if shape == "native":
        schema["properties"] = {"error": typed}
    else:
        schema["properties"] = {"error": {"type": "object", "properties": {"llm": typed}}}
    headers = {"x-llm-request-id": {"$ref": "#/components/headers/x-llm-request-id"}}
    if any(kind in RETRYABLE for kind in kinds):
        headers["retry-after"] = {"$ref": "#/components/headers/retry-after"}
    return {
        "description": " ".join(f"`{kind.value}`: {MEANING[kind]}" for kind in kinds),
        "headers": headers,
        "content": {JSON: {"schema": schema, "example": error_body(error, status, shape)}},
    }


def _parameters() -> Iterator[tuple[str, Any]]:
    text = {"type": "string"}
    yield "idempotency-key", {
        "name": "Idempotency-Key", "in": "header", "schema": text,
        "description": "The request's id. The same request under the same id gets the same stored answer.",
    }  # fmt: skip
    yield "prefer", {
        "name": "Prefer", "in": "header", "schema": text,
        "description": "`respond-async`: 202 at once; the answer can be fetched.",
    }  # fmt: skip
    yield "x-llm-client", {
        "name": "x-llm-client", "in": "header", "schema": text,
        "description": "Who asks, where no keys are asked for: 1 to 64 of A-Z a-z 0-9 _ -.",
    }  # fmt: skip
    for name, wish in Wishes.model_fields.items():
        header = PREFIX + name.replace("_", "-")
        yield header, {"name": header, "in": "header", "schema": text, "description": wish.description or ""}
