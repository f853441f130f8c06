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
    fold = {"overflow": "fold"}
    made = table(
        "provider", ("speaks", fold), ("keys here", fold), "model", "node", ("usable", fold), "breaker",
        "last failure", ("health", {"justify": "right"}),
    )  # fmt: skip
    for name, each in found.items():
        provider = policy.providers[name]
        own = (Text(name, "bold"), _speaks(provider, each), _keys(provider))
        if not each:
            made.add_row(*own, "", "", Text("no model of the policy uses it", "dim"))
        for at, place in enumerate(each):
            state = place.state
            made.add_row(
                *(own if at == 0 else ("", "", "")), place.model, place.node,
                Text(place.why_not, "red") if place.why_not else Text("yes", "green"),
                breaker(state, place.now_ms) if state else "", (state and state.last_failure) or "",
                health(state) if state else "",
            )  # fmt: skip
    return made


def _speaks(provider: Provider, found: list[Place]) -> Text:
    urls = [place.url for place in found] or [provider.url and without_secrets(provider.url)]
    return Text.assemble(provider.dialect, *((f"\n{url}", "dim") for url in dict.fromkeys(urls) if url))


def _keys(provider: Provider) -> Text:
    keys, problem = key_state(provider)
    if problem:
        return Text(problem, "red")
    if not keys:
        return Text("needs none", "dim")
    lines = [
        Text(f"{name} {'set' if is_set else 'not set'}", "green" if is_set else "dim") for name, is_set in keys.items()
    ]
    return Text("\n").join(lines)
