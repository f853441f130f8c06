"""OpenAI's `GET /v1/models` and `/v1/models/{id}`: all that a request may call a model, by the policy in force."""

from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from adapters.edge.door import DEFAULT_CAPABILITY
from adapters.edge.errors import JSON
from adapters.edge.exchange import request_id
from adapters.edge.ports import Edge
from router.errors import RequestFailedError
from schemas.failure import ErrorType
from schemas.policy import Capability, Model, Policy, Route


async def list_models(edge: Edge, request: Request) -> Response:
    client = edge.identity.caller(request.headers, request_id(request.headers))
    return _answer({"object": "list", "data": list(_theirs(edge, client).values())})


async def get_model(edge: Edge, request: Request) -> Response:
    """Raises RequestFailedError: unauthorized, no_route."""
    rid = request_id(request.headers)
    client = edge.identity.caller(request.headers, rid)
    name, policy = request.path_params["model"], edge.policy()
    known = _theirs(edge, client)
    # A request may also name it as its provider does.
    own = next((own for own, model in policy.models.items() if model.backend == name), name)
    if found := known.get(name) or known.get(own):
        return _answer(found)
    raise RequestFailedError.of(ErrorType.NO_ROUTE, rid, f"unknown model {name[:64]!r}; see /v1/models")


def _theirs(edge: Edge, client: str) -> dict[str, dict[str, Any]]:
    """What one of the client's models may answer."""
    found, allowed = listed(edge.policy()), edge.identity.models(client)
    if allowed is None:
        return found
    return {name: entry for name, entry in found.items() if allowed.intersection(entry.get("models", (name,)))}


def listed(policy: Policy) -> dict[str, dict[str, Any]]:
    """By name; of two that share one, that which a request would get."""
    found: dict[str, dict[str, Any]] = {}
    if (capability := policy.capabilities.get(DEFAULT_CAPABILITY)) is not None:
        found["auto"] = _entry("auto", "auto", _route(capability, policy))
    found |= {name: _entry(name, "capability", _route(each, policy)) for name, each in policy.capabilities.items()}
    found |= {name: _entry(name, "model", _model(model)) for name, model in policy.models.items()}
    return found | {name: _entry(name, "alias", _route(alias, policy)) for name, alias in policy.aliases.items()}


def _entry(name: str, kind: str, more: dict[str, Any]) -> dict[str, Any]:
    owner = more.get("provider", "llmbus")
    return {"id": name, "object": "model", "created": 0, "owned_by": owner, "kind": kind, **more}


def _route(route: Route | Capability, policy: Policy) -> dict[str, Any]:
    """`context_tokens`: so long a conversation finds a model."""
    task = policy.tasks.get(route.task) if isinstance(route, Capability) and route.task else None
    variants = [name for each in (task.variants.values() if task else ()) for name in each.models]
    models = (task.models if task else route.models) or tuple(dict.fromkeys(variants)) or policy.default.models
    return {
        "models": models,
        "embeds": policy.models[models[0]].embeds,
        "strategy": (task or route).strategy or policy.default_strategy,
        "context_tokens": max(policy.models[name].context_tokens for name in models),
    }


def _model(model: Model) -> dict[str, Any]:
    return {
        "provider": model.provider,
        "backend": model.backend,
        "nodes": model.nodes,
        "role": model.role,
        "context_tokens": model.context_tokens,
        "tools": model.tools and not model.embeds,
        "embeds": model.embeds,
        "free": model.costs_nothing,
        "price": model.price and model.price.model_dump(exclude_defaults=True, exclude={"source"}),
    }


def _answer(body: Any) -> Response:
    return Response(to_json(body), media_type=JSON)
