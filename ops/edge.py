"""The HTTP edge put together: the bus, the policy in force, who may ask, and the server."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import uvicorn
from fastapi import FastAPI

from adapters.bus import open_bus
from adapters.edge.app import create_app
from adapters.edge.ports import Edge
from adapters.edge.server import CONNECTIONS, BoundedProtocol
from adapters.fleet import Fleet
from adapters.mailbox import Mailbox
from adapters.requests import BusRequests
from ops.identity import identity
from ops.policy_in_force import SHIPPED, follow_policy, policy_changes, policy_store, shipped_policy
from router.core.tokens import estimate_request_tokens
from router.errors import LlmbusError, one_error, stop
from router.world_book import PolicyInForce

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
PORT = 8484
GRACE_S = 30
"""What answers under way have to end when the edge is told to; then they are cut off, and can be fetched."""
KEEP_ALIVE_S = 30
BACKLOG = 512
LOST_S = 60
"""A caller whose machine answers nothing for so long is gone."""
SPARE_FILES = 128
"""For all that is no connection."""


class EdgeError(LlmbusError):
    """The edge cannot be opened, and what to do."""


class InForce:
    """The policy that the edge goes by."""

    def __init__(self, in_force: PolicyInForce) -> None:
        self.in_force = in_force


@asynccontextmanager
async def edge(
    url: str, *, host: str = HOST, port: int = PORT, keys: bool = False, behind_tls: bool = False, wait_s: float = 30.0
) -> AsyncIterator[str]:
    """The edge, serving; yields its address. Raises EdgeError, BindError, UnavailableError.

    `keys`: only who shows one is served; beyond this machine always so. `behind_tls`: what stands in front speaks TLS.
    """
    async with open_bus(url, name="llmbus edge", wait_s=wait_s, make=True) as bus, Mailbox(bus) as mailbox:
        store = await policy_store(bus)
        active = await store.active() or await store.seed(shipped_policy(), SHIPPED)
        holder = InForce(PolicyInForce(active.number, active.policy))
        fleet = Fleet(bus, lambda: holder.in_force.policy)
        with one_error():
            async with (
                asyncio.TaskGroup() as tasks,
                policy_changes(bus) as changed,
                fleet.listening(),
                identity(bus, holder, host, keys=keys, behind_tls=behind_tls) as who,
            ):
                requests = BusRequests(bus, mailbox)
                parts = Edge(requests, who, lambda: holder.in_force.policy, fleet, count_tokens=estimate_request_tokens)
                app = create_app(parts)
                following = tasks.create_task(follow_policy(store, holder, changed))
                try:
                    async with _serving(app, _listening(host, port)) as address:
                        log.info("edge.ready", address=address)
                        try:
                            yield address
                        finally:
                            await stop(*parts.watching)
                finally:
                    await stop(following)


def _listening(host: str, port: int) -> socket.socket:
    """Raises EdgeError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio spares its connections Nagle's 40 ms only where the protocol is said.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        option = "--host" if isinstance(error, socket.gaierror) else "--port"
        raise EdgeError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with {option}") from None
    _notice_the_lost(listener)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _notice_the_lost(listener: socket.socket) -> None:
    """Callers that vanish without a word are found out; every connection has this from its listener."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)  # Linux, macOS
    if idle is not None:
        listener.setsockopt(socket.IPPROTO_TCP, idle, LOST_S)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_S * 1_000)


def _room() -> int:
    """How many connections fit into the files that this process may open, which are made more if they are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(CONNECTIONS, soft - SPARE_FILES))
    return CONNECTIONS


@asynccontextmanager
async def _serving(app: FastAPI, listener: socket.socket) -> AsyncIterator[str]:
    config = uvicorn.Config(
        app, loop="none", http=BoundedProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=GRACE_S, backlog=BACKLOG,
        limit_concurrency=_room(),
    )  # fmt: skip
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Its parts and not `serve`: signals are for whoever runs us.
    await server.startup([listener])
    host, port = listener.getsockname()[:2]
    with one_error():
        async with asyncio.TaskGroup() as tasks:
            ticking = tasks.create_task(server.main_loop())
            try:
                yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
            finally:
                server.should_exit = True
                await asyncio.wait((ticking,))
                await server.shutdown([listener])
