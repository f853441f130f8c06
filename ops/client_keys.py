"""Clients of the HTTP edge made and changed: what `llmbus key` does."""

from collections.abc import Collection
from typing import Any, NamedTuple

from adapters.bus import JetStreamBus
from adapters.key_ring import new_key, read_clients, write_client
from ops.policy_in_force import policy_store
from router.errors import LlmbusError
from schemas.client import ApiClient, ApiKey, ClientLimits
from schemas.policy_problems import one_of
from subjects import token

Changes = dict[str, Any]
"""Fields of `ClientLimits` that get other values."""


class NewKey(NamedTuple):
    """A key just made. Its text is in nobody's keeping but the caller's."""

    client: ApiClient
    id: str
    text: str


async def create(bus: JetStreamBus, name: str, *, note: str, changes: Changes) -> NewKey:
    """A key for a client, which is made if there is none of this name. Raises LlmbusError, InvalidTokenError."""
    found = await read_clients(bus)
    client, seq = found.get(name, (ApiClient(name=token("client", name)), 0))
    client = client.model_copy(update={"note": note or client.note, "limits": await _limits(bus, client, changes)})
    return await _with_key(bus, client, seq)


async def limit(bus: JetStreamBus, name: str, *, lift: bool, changes: Changes) -> ApiClient:
    """Other limits for a client; those not named stay, or with `lift` go. Raises LlmbusError."""
    client, seq = await _client(bus, name)
    if lift:
        client = client.model_copy(update={"limits": ClientLimits()})
    client = client.model_copy(update={"limits": await _limits(bus, client, changes)})
    await write_client(bus, client, after=seq)
    return client


async def revoke(bus: JetStreamBus, which: str) -> tuple[ApiClient, list[str]]:
    """End a key, or all keys of a client, from now on; the ids of those that ended. Raises LlmbusError."""
    found = await read_clients(bus)
    client, seq = found[which] if which in found else _owner(found, which)
    wanted = [key.id for key in client.keys if which in (key.id, client.name) and _live(key, bus)]
    await write_client(bus, _ended(client, wanted, bus.now_ms()), after=seq)
    return client, wanted


async def rotate(bus: JetStreamBus, key_id: str, *, overlap_ms: int) -> NewKey:
    """A new key in place of one that ends after `overlap_ms`. Raises LlmbusError."""
    client, seq = _owner(await read_clients(bus), key_id)
    if not any(key.id == key_id and _live(key, bus) for key in client.keys):
        raise LlmbusError(f"key {key_id} has ended; `llmbus key create {client.name}` makes another")
    return await _with_key(bus, _ended(client, [key_id], bus.now_ms() + overlap_ms), seq)


async def _with_key(bus: JetStreamBus, client: ApiClient, seq: int) -> NewKey:
    key, text = new_key(bus.now_ms())
    client = client.model_copy(update={"keys": (*client.keys, key)})
    await write_client(bus, client, after=seq)
    return NewKey(client, key.id, text)


def _ended(client: ApiClient, ids: Collection[str], at_ms: int) -> ApiClient:
    """A key that ends sooner already stays so."""
    keys = (
        key.model_copy(update={"ends_ms": min(at_ms, key.ends_ms or at_ms)}) if key.id in ids else key
        for key in client.keys
    )
    return client.model_copy(update={"keys": tuple(keys)})


def _live(key: ApiKey, bus: JetStreamBus) -> bool:
    return key.ends_ms is None or bus.now_ms() < key.ends_ms


async def _client(bus: JetStreamBus, name: str) -> tuple[ApiClient, int]:
    found = await read_clients(bus)
    if not found:
        raise LlmbusError(f"there is no client {name!r}, and no other; `llmbus key create NAME` makes one")
    if name not in found:
        raise LlmbusError(f"there is no client {name!r}; {one_of(name, sorted(found))}")
    return found[name]


def _owner(found: dict[str, tuple[ApiClient, int]], key_id: str) -> tuple[ApiClient, int]:
    for client, seq in found.values():
        if any(key.id == key_id for key in client.keys):
            return client, seq
    # It may be a whole key, which must not be told.
    raise LlmbusError("there is no such key or client; `llmbus key list` shows the ids")


async def _limits(bus: JetStreamBus, client: ApiClient, changes: Changes) -> ClientLimits:
    active = await (await policy_store(bus)).active()
    if active is not None:
        _known("capability", changes.get("capabilities"), active.policy.capabilities)
        _known("model", changes.get("models"), active.policy.models)
    return ClientLimits.model_validate({**client.limits.model_dump(), **changes})


def _known(what: str, names: Collection[str] | None, known: Collection[str]) -> None:
    for name in names or ():
        if name not in known:
            raise LlmbusError(f"the policy has no {what} {name!r}; {one_of(name, sorted(known))}")
