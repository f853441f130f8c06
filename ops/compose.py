"""The one place where real things meet ports: a router and a node, each a context that runs until it is left."""

import asyncio
import gc
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files

import structlog

from adapters.ask import asking
from adapters.bus import JetStreamBus, open_bus
from adapters.host import look
from adapters.providers import Backend, Setup, build, residency
from ops.keys import keys
from ops.policy_file import PolicyError
from ops.policy_store import ACTIVE, PolicyStore, RevisionNotFoundError
from router.attempt import Served
from router.breaker import Breaker
from router.canceller import Canceller
from router.dispatcher import Dispatcher
from router.errors import AttemptError, LlmbusError, one_error, stop
from router.executor import Executor
from router.lane import Lane
from router.mover import Mover
from router.node_door import answering
from router.ports import Headers, Provider, Residency
from router.seat import Seat
from router.settler import Settler
from router.sweeper import Sweeper
from router.world_book import PolicyInForce, WorldBook
from schemas.heartbeat import BackendState
from schemas.policy import Policy
from subjects.streams import POLICY_BUCKET

log = structlog.get_logger(__name__)

POLICY_LOOK_S = 60.0
NODE_PING_S = 1
"""A node must notice in time that it is cut off."""
PROBE_S = 15.0
PROBE_AGAIN_S = 2.0
"""While a backend cannot be reached: what is back should not be left idle."""
SHIPPED = "ops/policy.yaml"


class NodeUnknownError(LlmbusError):
    """The policy has no such node."""


def shipped_policy() -> str:
    """The text of the policy that comes with the project."""
    return files("ops").joinpath("policy.yaml").read_text(encoding="utf-8")


def quicken() -> None:
    """Collect garbage seldom: what start-up made stays, and a request makes no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@asynccontextmanager
async def router(url: str, *, wait_s: float = 30.0) -> AsyncIterator[WorldBook]:
    """A router on the bus at `url`, its streams made where they are missing."""
    async with open_bus(url, name="llmbus router", wait_s=wait_s, make=True) as bus:
        store = await policy_store(bus)
        active = await store.active() or await store.seed(shipped_policy(), SHIPPED)
        book = WorldBook(bus, PolicyInForce(active.number, active.policy))
        with one_error():
            async with (
                asyncio.TaskGroup() as tasks,
                policy_changes(bus) as changed,
                book.listening(),
                asking(bus),
                Settler(bus, book).running(),
                Canceller(bus, book).running(),
                Dispatcher(bus, book).running(),
            ):
                running = [
                    tasks.create_task(follow_policy(store, book, changed)),
                    tasks.create_task(Sweeper(bus, book).run()),
                    tasks.create_task(Mover(bus, book).run()),
                ]
                quicken()
                log.info("router.ready", policy=active.number)
                try:
                    yield book
                finally:
                    await stop(*running)


async def policy_store(bus: JetStreamBus) -> PolicyStore:
    return PolicyStore(await bus.client.jetstream().key_value(POLICY_BUCKET))


@asynccontextmanager
async def policy_changes(bus: JetStreamBus) -> AsyncIterator[asyncio.Event]:
    """An event that is set whenever another revision is made active."""
    changed = asyncio.Event()

    def pointed(_subject: str, _data: bytes, _headers: Headers) -> None:
        changed.set()

    async with bus.listen(f"$KV.{POLICY_BUCKET}.{ACTIVE}", pointed):
        yield changed


async def follow_policy(store: PolicyStore, book: WorldBook, changed: asyncio.Event) -> None:
    """Take each new revision; keep the last good one when a bad one comes. Looks again now and then, for ever."""
    while True:
        try:
            async with asyncio.timeout(POLICY_LOOK_S):
                await changed.wait()
        except TimeoutError:
            pass
        changed.clear()
        try:
            active = await store.active()
        except (PolicyError, RevisionNotFoundError) as error:
            log.warning("policy.refused", keeps=book.in_force.revision, error=str(error))
            continue
        except Exception as error:  # the bus is away: what is in force stays
            log.warning("policy.unread", keeps=book.in_force.revision, error=str(error) or type(error).__name__)
            continue
        if active is not None and active.number != book.in_force.revision:
            book.in_force = PolicyInForce(active.number, active.policy)
            log.info("policy.in_force", revision=active.number)


@asynccontextmanager
async def node(
    url: str, name: str, *, stand_in: bool = False, allow_crash: bool = False, wait_s: float = 30.0,
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Executor]:  # fmt: skip
    """The executor of node `name`, as the active policy describes it. Raises NodeUnknownError, KeyFileError.

    With `stand_in`, loopback answers for models whose backend is not usable, and says so.
    """
    async with open_bus(url, name=f"llmbus node {name}", wait_s=wait_s, make=True, ping_s=NODE_PING_S) as bus:
        store = await policy_store(bus)
        active = await store.active() or await store.seed(shipped_policy(), SHIPPED)
        bench = Bench(active.policy, name, stand_in=stand_in, allow_crash=allow_crash, environ=environ)
        try:
            served = await bench.serve()
            executor = Executor(
                bus, name, {model: bench.seat(model, what) for model, what in served.items()},
                instance=uuid.uuid4().hex[:12], version=version("llmbus"),
                max_deliveries=active.policy.limits.max_deliveries, silent_ms=active.policy.limits.node_silent_ms,
                host=look,
            )  # fmt: skip
            with one_error():
                async with (
                    asyncio.TaskGroup() as tasks,
                    executor.running(),
                    answering(bus, executor, lambda: bench.backends),
                ):
                    probing = tasks.create_task(bench.probe_for_ever(executor))
                    quicken()
                    log.info("node.ready", node=name, models={m: s.provider_name for m, s in served.items()})
                    try:
                        yield executor
                    finally:
                        await stop(probing)
        finally:
            await bench.aclose()


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
        self.models = {name: model for name, model in policy.models.items() if node in model.nodes}
        setups = {
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

    def seat(self, name: str, served: Served) -> Seat:
        limits = self._policy.limits
        return Seat(served, Lane(self.models[name].slots), Breaker(limits.breaker_failures, limits.breaker_open_ms))

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


def _setup(policy: Policy, node: str, name: str, allow_crash: bool, environ: Mapping[str, str]) -> Setup:
    provider = policy.providers[name]
    backends = {
        model.backend: Backend(model.context_tokens, model.resident, load_ms=model.first_token_ms)
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
