"""A whole llmbus on this machine: broker, router, edge and the policy's nodes, started together and ended in order."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import nats.errors
from pydantic import ValidationError

from adapters.ask import SERVICE
from adapters.bus import JetStreamBus, open_bus, without_secrets
from ops.broker import Broker
from ops.commands.children import Child, Say
from ops.commands.kept_broker import kept_broker
from ops.policy_file import load_policy
from ops.policy_in_force import SHIPPED, policy_store, shipped_policy
from ops.policy_store import Revision
from router.errors import LlmbusError, one_error
from schemas.heartbeat import Heartbeat
from subjects.streams import NODES_BUCKET

READY_S = 30.0
PING_S = 0.02
LOOPBACK = "127.0.0.1"
BEATS = f"$KV.{NODES_BUCKET}."


class StackError(LlmbusError):
    """A part did not come up, and where to look."""


@dataclass(frozen=True, slots=True)
class Stack:
    """All parts, ready."""

    url: str
    broker: Broker | None
    """None when the nats-server is somebody else's."""
    bus: JetStreamBus
    revision: Revision
    beats: Mapping[str, Heartbeat]
    http: str | None
    """Where the edge listens; None: there is none."""
    logs: Path
    started_s: float


@asynccontextmanager
async def stack(
    store: Path,
    router: Child,
    say: Say,
    *,
    port: int = -1,
    url: str | None = None,
    http_port: int | None = None,
    keys: bool = False,
) -> AsyncIterator[Stack]:
    """Around a router that is getting ready. Leaving stops the edge, the nodes, then the router, then the broker.

    `http_port`: that of the edge, 0 is a free one; None: without an edge. `keys`: it serves only who shows one.

    Raises BrokerError, StackError, UnavailableError.
    """
    begun = time.monotonic()
    logs = router.log_path.parent
    http_port = _free_port(http_port) if http_port is not None else None
    async with AsyncExitStack() as exits:
        server = None if url else await exits.enter_async_context(kept_broker(store, port, say))
        if server:
            say("broker", f"{server.url}  store {store}, every message synced to disk", True)
        url = url or (server.url if server else "")
        bus = await exits.enter_async_context(open_bus(url, name="llmbus up", make=True))
        if not server:
            say("broker", f"{without_secrets(url)}  not ours, and stays when we go", True)
        policies = await policy_store(bus)
        active = await policies.active()
        beats: dict[str, Heartbeat] = {}
        heard = await exits.enter_async_context(_hearing(bus, beats))
        edges, nodes = [], []
        if http_port is not None:
            command = ("edge", "--port", str(http_port), *(["--keys"] if keys else []))
            edges.append(await exits.enter_async_context(Child.started("edge", command, logs)))
        for name in (active.policy if active else load_policy(shipped_policy(), SHIPPED)).nodes:
            command = ("node", name, "--stand-in")
            nodes.append(await exits.enter_async_context(Child.started(name, command, logs)))
        # The nodes get ready while its prices are looked up.
        revision = active or await policies.seed(shipped_policy(), SHIPPED)
        for child in (router, *edges, *nodes):
            await child.tell(url)
        async with _kept((edges, nodes, [router]), say):
            await _ready(bus, beats, heard, revision.policy.nodes.keys(), logs)
            say("router", f"policy revision {revision.number}", True)
            http = None if http_port is None else await _edge_listens(http_port, logs)
            if http is not None:
                whom = "who shows a key (`llmbus key create NAME`)" if keys else "clients of OpenAI and Anthropic"
                say("edge", f"{http}  for {whom}; {http}/docs", True)
            yield Stack(url, server, bus, revision, beats, http, logs, time.monotonic() - begun)


@asynccontextmanager
async def _hearing(bus: JetStreamBus, beats: dict[str, Heartbeat]) -> AsyncIterator[asyncio.Event]:
    """Keep the newest heartbeat of each node; the event is set by each."""
    heard = asyncio.Event()

    def note(subject: str, data: bytes, _headers: Mapping[str, str]) -> None:
        with suppress(ValidationError):
            beats[subject.removeprefix(BEATS)] = Heartbeat.decode(data)
            heard.set()

    async with bus.listen(f"{BEATS}>", note):
        yield heard


@asynccontextmanager
async def _kept(groups: Sequence[Sequence[Child]], say: Say) -> AsyncIterator[None]:
    """Keep the children running; then stop them, one group after the other."""
    with one_error():
        async with asyncio.TaskGroup() as tasks:
            keepers = [tasks.create_task(child.keep(say)) for group in groups for child in group]
            try:
                yield
            finally:
                for keeper in keepers:
                    keeper.cancel()
                for group in groups:
                    await asyncio.gather(*(child.stop() for child in group))


async def _ready(
    bus: JetStreamBus, beats: Mapping[str, Heartbeat], heard: asyncio.Event, nodes: Set[str], logs: Path
) -> None:
    """Every node has been heard, and a router answers."""
    missing = {"router", *nodes}
    try:
        async with asyncio.timeout(READY_S):
            await _router_answers(bus)
            while missing := nodes - beats.keys():
                heard.clear()
                await heard.wait()
    except TimeoutError:
        names = ", ".join(sorted(missing))
        raise StackError(f"{names} did not come up within {READY_S:g} s; the logs: {logs}") from None


def _free_port(port: int) -> int:
    """The port, or one for 0. Raises StackError."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((LOOPBACK, port))
        except OSError as error:
            words = f"cannot listen on {LOOPBACK}:{port}: {error.strerror}; choose another with --http-port"
            raise StackError(words) from None
        return int(trial.getsockname()[1])


async def _edge_listens(port: int, logs: Path) -> str:
    try:
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection(LOOPBACK, port)
                except OSError:
                    await asyncio.sleep(PING_S)
                else:
                    writer.close()
                    return f"http://{LOOPBACK}:{port}"
    except TimeoutError:
        raise StackError(f"the edge did not come up within {READY_S:g} s; the logs: {logs}") from None


async def _router_answers(bus: JetStreamBus) -> None:
    """Service discovery knows the router's door; it stays unknown until the router is there."""
    while True:
        try:
            await bus.client.request(f"$SRV.PING.{SERVICE}", timeout=1)
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
            await asyncio.sleep(PING_S)
        else:
            return
