"""The clients of the HTTP edge and their keys: made, changed, and followed in the bucket `llm_keys`."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from hmac import compare_digest
from typing import Final

import structlog
from pydantic import ValidationError

from adapters.bus import JetStreamBus
from adapters.edge.limits import KEY_PREFIX, MAX_KEY_CHARS
from router.errors import BusError, ConflictError, LlmbusError, one_error, stop
from router.ports import Headers
from schemas import headers as h
from schemas.client import ApiClient, ApiKey
from subjects import is_token
from subjects.streams import KEYS_BUCKET

log = structlog.get_logger(__name__)

ENTRIES: Final = f"$KV.{KEYS_BUCKET}."
STREAM: Final = f"KV_{KEYS_BUCKET}"
LINK_LOOK_S: Final = 0.25
LOOK_S: Final = 60.0
"""So often all entries are read again, should one have been missed."""
KEPT_MS: Final = 90 * 24 * 60 * 60_000
"""An ended key is listed for so long."""
_NOBODY: Final = "0" * 64


class KeysChangedError(LlmbusError):
    """Two changed the same client at once."""


def new_key(now_ms: int) -> tuple[ApiKey, str]:
    """A key as it is kept, and its text, which is not."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    text = f"{KEY_PREFIX}{key_id}_{secret}"
    return ApiKey(id=key_id, sha256=digest(text), created_ms=now_ms), text


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


async def read_clients(bus: JetStreamBus) -> dict[str, tuple[ApiClient, int]]:
    """Every client, and the sequence of its entry. Raises UnavailableError."""
    found = {}
    async for letter in bus.read(STREAM, f"{ENTRIES}*"):
        if client := _client(letter.subject, letter.data):
            found[client.name] = client, letter.seq
    return found


async def write_client(bus: JetStreamBus, client: ApiClient, *, after: int) -> None:
    """`after`: the sequence of the entry that it replaces, 0 for a new one. Raises KeysChangedError, BusError."""
    old_ms = bus.now_ms() - KEPT_MS
    keys = tuple(key for key in client.keys if key.ends_ms is None or key.ends_ms > old_ms)
    kept = client.model_copy(update={"keys": keys})
    try:
        await bus.publish(ENTRIES + client.name, kept.encode(), headers={h.EXPECTED_LAST_SUBJECT_SEQUENCE: str(after)})
    except ConflictError:
        raise KeysChangedError(f"client {client.name} was changed just now by somebody else; try again") from None


class KeyRing:
    """All clients, in memory; what is changed on the bus holds here as soon as it is heard."""

    def __init__(self, bus: JetStreamBus) -> None:
        self._bus = bus
        self._clients: dict[str, ApiClient] = {}
        self._owners: dict[str, tuple[ApiClient, ApiKey]] = {}
        self._changes = 0

    @property
    def clients(self) -> Mapping[str, ApiClient]:
        return self._clients

    def live(self, key: ApiKey) -> bool:
        return key.ends_ms is None or self._bus.now_ms() < key.ends_ms

    def has_keys(self) -> bool:
        return any(self.live(key) for _, key in self._owners.values())

    def owner(self, text: str) -> ApiClient | None:
        """Whose key it is; a wrong one takes the same way as a right one."""
        whole = text if len(text) <= MAX_KEY_CHARS else ""
        key_id = whole.removeprefix(KEY_PREFIX).partition("_")[0]
        client, key = self._owners.get(key_id, (None, None))
        same = compare_digest(digest(whole), key.sha256 if key else _NOBODY)
        return client if same and key is not None and self.live(key) else None

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        async with self._bus.listen(f"{ENTRIES}*", self._heard):
            await self._read()
            with one_error():
                async with asyncio.TaskGroup() as tasks:
                    looking = tasks.create_task(self._look())
                    try:
                        yield
                    finally:
                        await stop(looking)

    async def _look(self) -> None:
        """What was changed while the connection was away was not heard."""
        link, left_s = self._bus.link(), LOOK_S
        while True:
            await asyncio.sleep(LINK_LOOK_S)
            left_s -= LINK_LOOK_S
            now = self._bus.link()
            if not now.up or (now == link and left_s > 0):
                continue
            try:
                await self._read()
            except BusError as error:
                log.warning("keys.unread", error=str(error))
                continue
            link, left_s = now, LOOK_S

    async def _read(self) -> None:
        changes = -1
        while changes != self._changes:  # what is heard meanwhile is newer than what is read
            changes = self._changes
            found = await read_clients(self._bus)
        self._clients = {name: client for name, (client, _) in found.items()}
        self._index()

    def _heard(self, subject: str, data: bytes, _headers: Headers) -> None:
        name = subject.removeprefix(ENTRIES)
        client = _client(subject, data)
        self._changes += 1
        if client is None:
            self._clients.pop(name, None)
        else:
            self._clients[name] = client
        self._index()

    def _index(self) -> None:
        self._owners = {key.id: (client, key) for client in self._clients.values() for key in client.keys}


def _client(subject: str, data: bytes) -> ApiClient | None:
    """None for an entry that was deleted, or is none of ours."""
    if not data:
        return None
    try:
        client = ApiClient.decode(data)
    except ValidationError as error:
        log.warning("keys.unreadable", entry=subject, errors=error.error_count())
        return None
    return client if is_token(client.name) and subject == ENTRIES + client.name else None
