"""The providers of the active policy: what can be used of them, why not, and how it went lately."""

import os
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from adapters.bus import open_bus, without_secrets
from ops.commands.node_table import Node, breaker, health, heard
from ops.commands.screen import console, print_json, table
from ops.keys import KeyFileError, sources
from ops.policy_in_force import policy_store
from router.errors import LlmbusError
from schemas.heartbeat import ModelState
from schemas.policy import Policy, Provider


@dataclass(frozen=True, slots=True)
class Place:
    """A model of a provider on a node; `state` is what the node last said of it, if it was heard and is its own."""

    model: str
    backend: str
    node: str
    url: str | None
    state: ModelState | None
    why_not: str | None
    now_ms: int


async def show_providers(url: str, *, as_json: bool) -> None:
    async with open_bus(url, name="llmbus providers") as bus:
        active = await (await policy_store(bus)).active()
        nodes = {node.beat.node: node for node in await heard(bus)}
        now_ms = bus.now_ms()
    if active is None:
        raise LlmbusError("no policy was applied yet; a router applies the shipped one when it starts")
    found = {name: places(active.policy, name, nodes, now_ms) for name in active.policy.providers}
    if as_json:
        print_json([_facts(name, active.policy.providers[name], each) for name, each in found.items()])
    else:
        console().print(_table(active.policy, found))


def places(policy: Policy, provider: str, nodes: dict[str, Node], now_ms: int) -> list[Place]:
    """Every model of a provider on every node that is to run it."""
    found = []
    for name, model in policy.models.items():
        for node in model.nodes if model.provider == provider else ():
            state = nodes[node].beat.models.get(name) if node in nodes else None
            url = policy.nodes[node].urls.get(provider, policy.providers[provider].url)
            why_not = _why_not(state, node, node in nodes, now_ms)
            # How a loopback does says nothing of the provider it stands in for.
            own = None if state and state.stand_in else state
            found.append(Place(name, model.backend, node, url and without_secrets(url), own, why_not, now_ms))
    return found


def _why_not(state: ModelState | None, node: str, was_heard: bool, now_ms: int) -> str | None:
    if not was_heard:
        return f"node {node} is not heard; start it with `llmbus node {node}`"
    if state is None:
        return f"node {node} has an older policy; start it again"
    if state.stand_in:
        return f"{state.why_not or 'cannot be used'}; loopback stands in"
    if not state.usable:
        return state.why_not or "not usable"
    if state.breaker == "open" and (state.open_until_ms or now_ms + 1) > now_ms:
        return "it failed too often; its breaker is open"
    return None


def key_state(provider: Provider) -> tuple[dict[str, bool], str | None]:
    """By variable, whether it is set for this very process; and what is wrong with one of them."""
    try:
        found = [source.variable for source in sources(provider.keys, os.environ)]
    except KeyFileError as error:
        return dict.fromkeys(provider.keys, False), str(error)
    return dict.fromkeys(provider.keys, False) | dict.fromkeys(found, True), None


def _facts(name: str, provider: Provider, found: list[Place]) -> dict[str, Any]:
    keys, problem = key_state(provider)
    return {
        "provider": name,
        "dialect": provider.dialect,
        "url": provider.url and without_secrets(provider.url),
        "keys_set_here": keys,
        "keys_problem": problem,
        "usable": any(place.why_not is None for place in found),
        "models": [
            {
                "model": place.model, "backend": place.backend, "node": place.node, "url": place.url,
                "usable": place.why_not is None, "why_not": place.why_not,
                "health": place.state.health if place.state else None,
                "breaker": place.state.breaker if place.state else None,
                "open_until_ms": place.state.open_until_ms if place.state else None,
                "last_failure": place.state.last_failure if place.state else None,
            }
            for place in found
        ],
    }  # fmt: skip


def _table(policy: Policy, found: dict[str, list[Place]]) -> Table:
    """A provider's own line, then one for each of its models."""
    made = table(
        ("provider, model", {"no_wrap": True}), ("node", {"no_wrap": True}), ("", {"overflow": "fold", "ratio": 1})
    )
    made.expand = True
    for name, each in found.items():
        made.add_row(Text(name, "bold"), "", _own(policy.providers[name], each))
        for place in each:
            made.add_row(f"  {place.model}", place.node, _usable(place))
    return made


def _own(provider: Provider, found: list[Place]) -> Text:
    """What it speaks, where, and with which keys."""
    urls = [place.url for place in found] or [provider.url and without_secrets(provider.url)]
    facts = [Text(provider.dialect), *(Text(url, "dim") for url in dict.fromkeys(urls) if url)]
    keys, problem = key_state(provider)
    if problem:
        facts.append(Text(problem, "red"))
    facts += [
        Text(f"{name} {'set' if is_set else 'not set'}", "green" if is_set else "dim") for name, is_set in keys.items()
    ]
    if not keys:
        facts.append(Text("needs no key", "dim"))
    if not found:
        facts.append(Text("no model of the policy uses it", "dim"))
    return Text(", ").join(facts)


def _usable(place: Place) -> Text:
    notes = [Text(place.why_not, "red") if place.why_not else Text("usable", "green")]
    if (state := place.state) is not None:
        notes.append(Text.assemble(health(state), " well"))
        if opened := breaker(state, place.now_ms):
            notes.append(Text.assemble("breaker ", opened))
        if state.last_failure:
            notes.append(Text(f"last failure: {state.last_failure.value}", "yellow"))
    return Text(", ").join(notes)
