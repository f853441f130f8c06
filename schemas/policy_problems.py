"""What is wrong in a policy that types cannot see: names that lead nowhere, parts that contradict each other."""

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Final, NamedTuple

from schemas.policy import Dialect, Model, Policy, Residence, Route


class Problem(NamedTuple):
    """Something wrong in a policy that types cannot see: where, what, and what would be right."""

    where: tuple[str | int, ...]
    what: str
    remedy: str


RESERVED_NODES = frozenset({"router"})


def problems(policy: Policy, guardrails: frozenset[str]) -> Iterator[Problem]:
    """Every name that leads nowhere and every part that contradicts itself; `guardrails` are the ones that exist."""
    for name, model in policy.models.items():
        yield from _model_problems(policy, name, model)
    yield from _lost_names(policy, guardrails)
    yield from _route_problems(policy)
    yield from _residency_problems(policy)
    yield from _embedding_problems(policy)
    for name in policy.nodes.keys() & RESERVED_NODES:
        yield Problem(("nodes", name), f"the node name {name!r} is reserved", "choose another name")
    for name in policy.aliases.keys() & policy.models.keys():
        yield Problem(("aliases", name), f"{name!r} is also a model", "rename the alias")


def _lost_names(policy: Policy, guardrails: frozenset[str]) -> Iterator[Problem]:
    for name, node in policy.nodes.items():
        for provider in node.urls:
            yield from _unknown(("nodes", name, "urls", provider), "provider", provider, policy.providers)
    for name, agent in policy.agents.items():
        yield from _unknown(("agents", name, "model"), "model", agent.model, policy.models)
    for where, names in _model_lists(policy):
        for at, name in enumerate(names):
            yield from _unknown((*where, at), "model", name, policy.models)
    if "default" not in policy.fallbacks:
        yield Problem(("fallbacks",), "there is no chain `default`", "add it; `default: []` is an empty one")
    for where, chain in _fallback_names(policy):
        yield from _unknown(where, "fallback chain", chain, {*policy.fallbacks, "default"})
    for name, capability in policy.capabilities.items():
        if capability.task is not None:
            yield from _unknown(("capabilities", name, "task"), "task", capability.task, policy.tasks)
    for name in policy.guardrails:
        yield from _unknown(("guardrails", name), "guardrail", name, guardrails)


def _route_problems(policy: Policy) -> Iterator[Problem]:
    for name, capability in policy.capabilities.items():
        if (capability.task is None) == (not capability.models):
            yield Problem(("capabilities", name), "needs either `task` or `models`", "give exactly one of the two")
    for name, task in policy.tasks.items():
        if bool(task.models) == bool(task.variants):
            yield Problem(("tasks", name), "needs either `models` or `variants`", "give exactly one of the two")
        if task.variants and all(route.when is not None for route in task.variants.values()):
            yield Problem(
                ("tasks", name, "variants"),
                "every variant has a `when`, so some request would have none",
                "leave `when` out of the last one",
            )
    routes: dict[tuple[str, ...], Route] = {("aliases", name): alias for name, alias in policy.aliases.items()}
    for where, route in [*routes.items(), (("default",), policy.default)]:
        if route.when is not None:
            yield Problem((*where, "when"), "`when` means nothing here", "leave it out; only variants of tasks have it")


def _model_problems(policy: Policy, name: str, model: Model) -> Iterator[Problem]:
    for at, node in enumerate(model.nodes):
        yield from _unknown(("models", name, "nodes", at), "node", node, policy.nodes)
        memory_gb = policy.nodes[node].memory_gb if node in policy.nodes else None
        if memory_gb is not None and model.memory_gb > memory_gb:
            yield Problem(
                ("models", name, "memory_gb"),
                f"{model.memory_gb:g} GB can never fit {node}, which has {memory_gb:g} GB",
                "put it on a larger node or use a smaller quantization",
            )
    yield from _unknown(("models", name, "provider"), "provider", model.provider, policy.providers)
    provider = policy.providers.get(model.provider)
    if provider and provider.dialect != "loopback" and provider.url is None:
        for at, node in enumerate(model.nodes):
            if node in policy.nodes and model.provider not in policy.nodes[node].urls:
                yield Problem(
                    ("models", name, "nodes", at),
                    f"nothing says where {node} finds {model.provider}",
                    f"add `urls: {{{model.provider}: http://...}}` to the node or `url` to the provider",
                )
    if model.lighter is not None:
        yield from _unknown(("models", name, "lighter"), "model", model.lighter, policy.models)
    if model.price is not None:
        given = {"input_usd_per_mtok", "output_usd_per_mtok"} & model.price.model_fields_set
        enough = model.embeds and "input_usd_per_mtok" in given
        if (len(given) == 1 and not enough) or (not given and model.price.usd_per_hour is None):
            yield Problem(
                ("models", name, "price"),
                "says only in part what it costs",
                "give both `input_usd_per_mtok` and `output_usd_per_mtok`, or `usd_per_hour`; 0 is a price",
            )


RESIDENT_DIALECTS: Final[Mapping[Residence, tuple[Dialect, ...]]] = {
    "ollama": ("ollama",),
    "llama-server": ("openai", "anthropic"),
    "single": ("openai", "anthropic"),
}


def _residency_problems(policy: Policy) -> Iterator[Problem]:
    for name, provider in policy.providers.items():
        dialects = RESIDENT_DIALECTS.get(provider.residence)
        if dialects and provider.dialect not in dialects:
            yield Problem(
                ("providers", name, "residency"),
                f"{provider.residence!r} does not go with the dialect {provider.dialect}",
                f"leave it out, or use the dialect {' or '.join(dialects)}",
            )
        if provider.residence == "single":
            yield from _crowded(policy, name)


def _crowded(policy: Policy, provider: str) -> Iterator[Problem]:
    """Models that one server would have to hold beside another, and cannot."""
    first: dict[str, str] = {}
    for name, model in policy.models.items():
        for node in model.nodes if model.provider == provider else ():
            if model.backend != first.setdefault(node, model.backend):
                yield Problem(
                    ("models", name, "backend"),
                    f"{provider} holds one model, and on {node} that is {first[node]}",
                    "give each server a provider of its own, or use `residency: llama-server`",
                )


NO_EMBEDDINGS: Final = frozenset({"anthropic"})
"""Dialects that have none."""


def _embedding_problems(policy: Policy) -> Iterator[Problem]:
    """Vectors of two models cannot be compared: a model that embeds is in no list with another, and follows none."""
    embedding = {name for name, model in policy.models.items() if model.embeds}
    for name in sorted(embedding):
        model = policy.models[name]
        provider = policy.providers.get(model.provider)
        if provider and provider.dialect in NO_EMBEDDINGS:
            yield Problem(("models", name, "embeds"), f"{provider.dialect} has no embeddings", "use another provider")
        for field in ("fallback", "lighter"):
            if field in model.model_fields_set:
                yield Problem(
                    ("models", name, field), "nothing may take the place of a model that embeds", "leave it out"
                )
    for name, model in policy.models.items():
        if model.lighter in embedding:
            yield Problem(
                ("models", name, "lighter"), f"{model.lighter} embeds and takes no chats", "name a chat model"
            )
    for where, names in _model_lists(policy):
        among = sorted(embedding.intersection(names))
        if among and where[0] not in ("aliases", "capabilities"):
            yield Problem(
                where, f"{among[0]} embeds and takes no chats", "leave it to an alias or a capability of its own"
            )
        elif among and len(set(names)) > 1:
            yield Problem(where, f"{among[0]} embeds, and no other could take its place", "let it stand alone")
    for name, agent in policy.agents.items():
        if agent.model in embedding:
            yield Problem(("agents", name, "model"), f"{agent.model} embeds and takes no chats", "name a chat model")


def _model_lists(policy: Policy) -> Iterator[tuple[tuple[str | int, ...], tuple[str, ...]]]:
    yield ("default", "models"), policy.default.models
    for name, alias in policy.aliases.items():
        yield ("aliases", name, "models"), alias.models
    for name, capability in policy.capabilities.items():
        yield ("capabilities", name, "models"), capability.models
    for name, task in policy.tasks.items():
        yield ("tasks", name, "models"), task.models
        for variant, route in task.variants.items():
            yield ("tasks", name, "variants", variant, "models"), route.models
    for name, agent in policy.agents.items():
        yield ("agents", name, "fallbacks"), agent.fallbacks
    for name, chain in policy.fallbacks.items():
        yield ("fallbacks", name), chain


def _fallback_names(policy: Policy) -> Iterator[tuple[tuple[str | int, ...], str]]:
    yield ("default", "fallback"), policy.default.fallback
    for section, routes in (
        ("models", policy.models),
        ("agents", policy.agents),
        ("aliases", policy.aliases),
        ("capabilities", policy.capabilities),
        ("tasks", policy.tasks),
    ):
        for name, route in routes.items():
            yield (section, name, "fallback"), route.fallback
    for name, task in policy.tasks.items():
        for variant, route in task.variants.items():
            yield ("tasks", name, "variants", variant, "fallback"), route.fallback


def _unknown(where: tuple[str | int, ...], what: str, name: str, known: Collection[str]) -> Iterator[Problem]:
    if name not in known:
        yield Problem(where, f"unknown {what} {name!r}", one_of(name, known))


def one_of(name: str, known: Collection[str]) -> str:
    """The remedy for a name that leads nowhere: the nearest that does, then all."""
    near = "".join(f"did you mean {close!r}? " for close in get_close_matches(name, known, 1))
    return f"{near}one of: {', '.join(sorted(known)) or 'none is defined'}"
