"""The backends of one node: its providers, who answers for each model right now, and whose memory is managed."""

import asyncio
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from adapters.host import look
from adapters.providers import Backend, Setup, build, residency
from ops.keys import keys
from router.attempt import Served
from router.breaker import Breaker
from router.core.residency import GB, NodeState, spec_of
from router.errors import AttemptError, LlmbusError
from router.executor import Executor
from router.lane import Lane
from router.ports import Provider, Residency
from router.scheduler import Home, Scheduler
from router.seat import Seat
from schemas.heartbeat import BackendState
from schemas.policy import Policy

PROBE_S = 15.0
PROBE_AGAIN_S = 2.0
"""While a backend cannot be reached: what is back should not be left idle."""
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


class NodeUnknownError(LlmbusError):
    """The policy has no such node."""


class Bench:
    """The providers of one node, and which of its models each can answer for right now."""

    def __init__(
        self, policy: Policy, node: str, *, stand_in: bool, allow_crash: bool, environ: Mapping[str, str]
    ) -> None:
        if node not in policy.nodes:
            known = ", ".join(sorted(policy.nodes))
            raise NodeUnknownError(
                f"the policy has no node {node!r}; it has: {known}. Add it, then `llmbus policy apply`"
            )
        self._policy = policy
        self._node = node
        self.models = {name: model for name, model in policy.models.items() if node in model.nodes}
        setups = self._setups = {
            name: _setup(policy, node, name, allow_crash, environ)
            for name in dict.fromkeys(model.provider for model in self.models.values())
        }
        self._providers = {name: build(policy.providers[name].dialect, setup) for name, setup in setups.items()}
        self.residencies: dict[str, Residency] = {
            name: held
            for name, setup in setups.items()
            if (held := residency(policy.providers[name].residence, setup, self._providers[name]))
        }
        """By provider, of those whose models come and go in the memory of this node."""
        self._loopback = build("loopback", Setup(allow_crash=allow_crash))
        self._stand_in = stand_in
        self.backends: dict[str, BackendState] = {}
        """As the latest look found them."""

    async def serve(self) -> dict[str, Served]:
        """Ask every provider what it can do."""
        found = dict(zip(self._providers, await asyncio.gather(*map(_probe, self._providers.values())), strict=True))
        self.backends = {
            name: BackendState(reachable=False, why_not=words)
            if isinstance(words, str)
            else BackendState(reachable=True)
            for name, words in found.items()
        }
        return {name: self._served(name, found) for name in self.models}

    def scheduler(self, now_ms: Callable[[], int]) -> Scheduler:
        """Of the models that come and go in this node's memory; there may be none."""
        homes = {
            name: Home(held, model.backend)
            for name, model in self.models.items()
            if (held := self.residencies.get(model.provider)) and not held.fixed
        }
        specs = [spec_of(name, model) for name, model in self.models.items() if name in homes]
        memory_gb = self._policy.nodes[self._node].memory_gb
        total_bytes = look().memory_total_bytes or 0 if memory_gb is None else int(memory_gb * GB)
        here = all(
            urlsplit(self._setups[self.models[name].provider].url or "").hostname in THIS_MACHINE for name in homes
        )
        return Scheduler(NodeState(specs, total_bytes), homes, now_ms, _free_bytes if here else None)

    def seat(self, name: str, served: Served, scheduler: Scheduler) -> Seat:
        limits = self._policy.limits
        breaker = Breaker(limits.breaker_failures, limits.breaker_open_ms)
        managed = scheduler if name in scheduler.state.models else None
        return Seat(served, Lane(self.models[name].slots), breaker, name, managed)

    async def probe_for_ever(self, executor: Executor) -> None:
        """Notice a backend that came up, or went."""
        while True:
            well = all(state.reachable for state in self.backends.values())
            await asyncio.sleep(PROBE_S if well else PROBE_AGAIN_S)
            for model, served in (await self.serve()).items():
                executor.serve(model, served)

    async def aclose(self) -> None:
        for held in self.residencies.values():
            await held.aclose()
        for provider in (*self._providers.values(), self._loopback):
            await provider.aclose()

    def _served(self, name: str, found: dict[str, dict[str, str | None] | str]) -> Served:
        model = self.models[name]
        words = found[model.provider]
        why_not = words if isinstance(words, str) else words.get(model.backend)
        if why_not is not None and self._stand_in:
            return Served(self._loopback, "loopback", stand_in=True, why_not=why_not)
        return Served(self._providers[model.provider], model.provider, why_not=why_not)


def _free_bytes() -> int:
    return look().memory_free_bytes or 0


def _setup(policy: Policy, node: str, name: str, allow_crash: bool, environ: Mapping[str, str]) -> Setup:
    provider = policy.providers[name]
    backends = {
        # What this node manages goes when it says so, and not before.
        model.backend: Backend(
            model.context_tokens, model.resident or provider.residence != "none", model.first_token_ms, model.embeds
        )
        for model in policy.models.values()
        if model.provider == name and node in model.nodes
    }
    url = policy.nodes[node].urls.get(name, provider.url)
    return Setup(url, backends, keys(provider.keys, environ), provider.keys, allow_crash)


async def _probe(provider: Provider) -> dict[str, str | None] | str:
    """What the provider says of its models, or why it cannot be reached."""
    try:
        return await provider.probe()
    except AttemptError as error:
        return error.failure.message
