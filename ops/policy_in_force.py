"""The policy in force, followed: each new revision is taken as it comes, a bad one never."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Protocol

import structlog

from adapters.bus import JetStreamBus
from ops.policy_file import PolicyError
from ops.policy_store import ACTIVE, PolicyStore, RevisionNotFoundError
from router.ports import Headers
from router.world_book import PolicyInForce
from subjects.streams import POLICY_BUCKET

log = structlog.get_logger(__name__)

POLICY_LOOK_S = 60.0
SHIPPED = "ops/policy.yaml"


class Holder(Protocol):
    """Whoever goes by a policy."""

    in_force: PolicyInForce


def shipped_policy() -> str:
    """The text of the policy that comes with the project."""
    return files("ops").joinpath("policy.yaml").read_text(encoding="utf-8")


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


async def follow_policy(store: PolicyStore, holder: Holder, changed: asyncio.Event) -> None:
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
            log.warning("policy.refused", keeps=holder.in_force.revision, error=str(error))
            continue
        except Exception as error:  # the bus is away: what is in force stays
            log.warning("policy.unread", keeps=holder.in_force.revision, error=str(error) or type(error).__name__)
            continue
        if active is not None and active.number != holder.in_force.revision:
            holder.in_force = PolicyInForce(active.number, active.policy)
            log.info("policy.in_force", revision=active.number)
