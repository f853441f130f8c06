"""Which models a request names, directly or through alias, agent, task or capability, and how to choose among them."""

from dataclasses import dataclass

from schemas.decision import Refuse
from schemas.failure import ErrorType
from schemas.policy import Policy, Route, When
from schemas.request import LlmRequest, Strategy

MATCHES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Chosen:
    """Models in order of preference, what named them, and the strategy that orders them."""

    route: str
    task: str | None
    models: tuple[str, ...]
    strategy: Strategy
    chain: tuple[str, ...]


def choose_route(request: LlmRequest, capability: str, policy: Policy, tokens_in: int) -> Chosen | Refuse:
    """The first that applies: the model asked for, the agent's preference, the task, the capability, the default."""
    entry = policy.capabilities.get(capability)
    if entry is None:
        known = _listed(sorted(policy.capabilities))
        return Refuse(error=ErrorType.NO_ROUTE, message=f"unknown capability {capability!r}; known are: {known}")
    task = (request.task if request.embed is None else None) or entry.task
    # An agent's preferences and a request's task are about chats.
    agent = None if request.embed is not None else policy.agents.get(request.agent or "")
    if request.model is not None:
        named = _named_model(request.model, policy)
        if isinstance(named, Refuse):
            return named
        label, route = named
    elif agent is not None:
        label = f"agent:{request.agent}"
        route = Route(models=(agent.model, *agent.fallbacks), strategy=agent.strategy, fallback=agent.fallback)
    elif task is not None:
        label, route = _task_route(task, request, policy, tokens_in)
    else:
        label = f"capability:{capability}"
        route = Route(models=entry.models, strategy=entry.strategy, fallback=entry.fallback)
    if request.embed is not None or policy.models[route.models[0]].embeds:
        # Vectors of two models cannot be compared: the first one, wherever it runs, or none.
        strategy = request.preferences.strategy or route.strategy or policy.default_strategy
        return Chosen(label, task, route.models[:1], strategy, ())
    models, strategy = _bend(label, route, request, task, policy)
    return Chosen(label, task, models, strategy, policy.fallbacks[route.fallback])


def _named_model(name: str, policy: Policy) -> tuple[str, Route] | Refuse:
    if alias := policy.aliases.get(name):
        return f"alias:{name}", alias
    if name in policy.models:
        return f"model:{name}", Route(models=(name,), fallback=policy.models[name].fallback)
    # Clients that other people wrote ask by the backend's own name, gpt-4.1 or qwen3:14b.
    if own := next((own for own, model in policy.models.items() if model.backend == name), None):
        return f"model:{own}", Route(models=(own,), fallback=policy.models[own].fallback)
    known = _listed([*sorted(policy.aliases), *sorted(policy.models)])
    return Refuse(error=ErrorType.NO_ROUTE, message=f"unknown model {name[:64]!r}; known are: {known}")


def _listed(names: list[str]) -> str:
    more = len(names) - MATCHES_SHOWN
    return ", ".join(names[:MATCHES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _task_route(name: str, request: LlmRequest, policy: Policy, tokens_in: int) -> tuple[str, Route]:
    task = policy.tasks.get(name)
    if task is not None and task.variants:
        for variant, route in task.variants.items():
            if route.when is None or _holds(route.when, request, tokens_in):
                return f"task:{name}/{variant}", route
    if task is not None and task.models:
        return f"task:{name}", Route(models=task.models, strategy=task.strategy, fallback=task.fallback)
    for parent, other in policy.tasks.items():
        if name in other.variants:
            return f"task:{parent}/{name}", other.variants[name]
    return "default", policy.default


def _holds(when: When, request: LlmRequest, tokens_in: int) -> bool:
    asked = request.constraints
    return (
        (when.dataset_size_at_least is None or (asked.dataset_size or 0) >= when.dataset_size_at_least)
        and (when.prompt_tokens_at_most is None or tokens_in <= when.prompt_tokens_at_most)
        and (when.quality_critical is None or asked.quality_critical == when.quality_critical)
        and (when.time_critical is None or asked.time_critical == when.time_critical)
    )


def _bend(
    label: str, route: Route, request: LlmRequest, task: str | None, policy: Policy
) -> tuple[tuple[str, ...], Strategy]:
    """What the request's own wishes make of the route: its strategy wins, then its constraints, then its urgency."""
    models = tuple(dict.fromkeys(route.models))
    asked = request.constraints
    if request.preferences.strategy is not None:
        return models, request.preferences.strategy
    if asked.quality_critical:
        return models, "quality"
    if asked.time_critical:
        return models, "speed"
    if asked.budget_constraint in ("medium", "high"):
        return models, "cost"
    named = label.startswith("model:")
    if request.urgency == "critical" and not named and task not in policy.critical_keeps_model:
        lighter = (light for name in models if (light := policy.models[name].lighter))
        return tuple(dict.fromkeys((*lighter, *models))), "agent_preference"
    return models, route.strategy or policy.default_strategy
