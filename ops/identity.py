"""Who may ask an edge, put together; and where it may listen at all."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from adapters.accounts import Accounts
from adapters.bus import JetStreamBus
from adapters.edge.ports import Submission
from adapters.identity import BusIdentity
from adapters.key_ring import KeyRing
from adapters.meters import Meters
from ops.policy_in_force import Holder
from router.core.weigh import weigh
from router.errors import LlmbusError
from schemas.client import Weight
from schemas.request import LlmRequest


class BindError(LlmbusError):
    """An edge would stand open to others, and what to do."""


@asynccontextmanager
async def identity(
    bus: JetStreamBus, holder: Holder, host: str, *, keys: bool, behind_tls: bool
) -> AsyncIterator[BusIdentity]:
    """Raises BindError, UnavailableError."""
    here = _is_loopback(host)

    def weigh_now(asked: Submission, models: tuple[str, ...] | None) -> Weight:
        return weigh(LlmRequest.decode(asked.body), asked.capability, holder.in_force.policy, models)

    ring, meters = KeyRing(bus), Meters(bus)
    async with ring.following(), Accounts(bus, meters).running() as accounts:
        if not here:
            _fit_for_others(host, ring, behind_tls)
        yield BusIdentity(bus, ring, accounts, meters, weigh_now, keys_needed=keys or not here)


def _fit_for_others(host: str, ring: KeyRing, behind_tls: bool) -> None:
    missing = []
    if not ring.has_keys():
        missing.append("there is no key: make one with `llmbus key create NAME`")
    if not behind_tls:
        missing.append("keys would travel in the clear: put something that speaks TLS in front, and say --behind-tls")
    if missing:
        raise BindError(f"{host} can be reached from other machines; {'; '.join(missing)}")


def _is_loopback(host: str) -> bool:
    """Of every address that it may stand for; a name that stands for none cannot be listened on either."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ip_address(str(address[4][0])).is_loopback for address in found)
