"""`GET /health`, `/models` and `/memory`: how the bus is, who may answer what, and what the machines hold."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from adapters.edge.errors import JSON
from adapters.edge.exchange import request_id
from adapters.edge.ports import Edge
from router.errors import RequestFailedError
from schemas.failure import ErrorType
from schemas.heartbeat import Heartbeat, ModelState
from schemas.policy import Model, Policy

GB: Final = 1_000_000_000
RULES: Final = frozenset(
    {"capabilities", "tasks", "default", "aliases", "agents", "fallbacks", "default_strategy", "balance",
     "critical_keeps_model"}
)  # fmt: skip
"""The parts of the policy that say who answers."""
NOT_KEPT: Final = {"cache-control": "no-store"}
AGAIN: Final = {"retry-after": "2"}


def add(app: FastAPI, edge: Edge, tag: str) -> None:
    async def health(request: Request) -> Response:
        """200 when something can be answered, 503 when nothing can. Strangers are told the status only."""
        found = await edge.fleet.health()
        body = found.encode() if _is_known(edge, request) else to_json({"status": found.status})
        down = found.status == "down"
        return Response(body, 503 if down else 200, NOT_KEPT | (AGAIN if down else {}), JSON)

    async def models(request: Request) -> Response:
        """The models with their roles and where they are in memory, and the rules by which they are chosen."""
        edge.identity.caller(request.headers, request_id(request.headers))
        return Response(to_json(models_told(edge.policy(), edge.fleet.heard())), 200, NOT_KEPT, JSON)

    async def memory(request: Request) -> Response:
        """The memory of each machine, in GB of a billion bytes, and which models have it."""
        edge.identity.caller(request.headers, request_id(request.headers))
        return Response(to_json(memory_told(edge.policy(), edge.fleet.heard())), 200, NOT_KEPT, JSON)

    for path, handle in (("/health", health), ("/models", models), ("/memory", memory)):
        app.get(path, tags=[tag], name=path)(handle)
    app.head("/health", include_in_schema=False)(health)  # as load balancers ask


def models_told(policy: Policy, heard: Mapping[str, Heartbeat]) -> dict[str, Any]:
    """Everything that is asked for in `/models`."""
    return {
        "models": {
            name: {
                **model.model_dump(mode="json", exclude_none=True),
                "where": {node: _state(name, heard.get(node)) for node in model.nodes},
            }
            for name, model in policy.models.items()
        },
        "routing_rules": policy.model_dump(mode="json", include=set(RULES), exclude_none=True),
    }


def memory_told(policy: Policy, heard: Mapping[str, Heartbeat]) -> dict[str, Any]:
    """Everything that is asked for in `/memory`."""
    nodes = {}
    for name, node in policy.nodes.items():
        beat = heard.get(name)
        states = beat.models if beat else {}
        held = {each for each, state in states.items() if state.in_memory in ("resident", "unloading")}
        models = {each: model for each, model in policy.models.items() if name in model.nodes}
        taken = {each: memory_gb(model, states.get(each)) for each, model in models.items()}
        nodes[name] = {
            "heard": beat is not None,
            "total_gb": _gb(beat.memory_total_bytes) if beat else None,
            "free_gb": _gb(beat.memory_free_bytes) if beat else None,
            "for_models_gb": node.memory_gb,
            "used_by_models_gb": round(sum(gb for each, gb in taken.items() if each in held), 3) if beat else None,
            "resident": sorted(held),
            "models": {
                each: {
                    "backend": model.backend,
                    "memory_gb": taken[each],
                    "in_memory": states[each].in_memory if each in states else None,
                }
                for each, model in models.items()
            },
        }
    return {"nodes": nodes}


def memory_gb(model: Model, state: ModelState | None) -> float:
    """What it takes on a node: as measured there, else as the policy has it."""
    measured = _gb(state.memory_bytes) if state else None
    return model.memory_gb if measured is None else measured


def _state(model: str, beat: Heartbeat | None) -> dict[str, Any]:
    """A model on one of its nodes; `loaded` is None where nobody manages that."""
    state = beat.models.get(model) if beat else None
    if state is None:
        return {"heard": beat is not None, "loaded": None}
    loaded = None if state.in_memory is None else state.in_memory == "resident"
    return {"heard": True, "loaded": loaded, **state.model_dump(mode="json", exclude_none=True)}


def _gb(count: int | None) -> float | None:
    return None if count is None else round(count / GB, 3)


def _is_known(edge: Edge, request: Request) -> bool:
    try:
        edge.identity.caller(request.headers, request_id(request.headers))
    except RequestFailedError as refusal:
        if refusal.error.type is ErrorType.UNAUTHORIZED:
            return False
        raise
    return True
