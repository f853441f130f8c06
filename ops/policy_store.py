"""Keeps every revision of the policy on the bus for ever, and says which one is active.

Key `r000001`, `r000002`, ... holds the text of a revision and is written once; `r000001.about` says when and why it
came; `active` holds the number of the active one, so that its own history tells what was active when.

Only direct reads are used: nats-py's `history` and `keys` leave a consumer behind at every call, and find nothing when
the entries are on their way as they ask how many will come.
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Protocol

from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError

from ops.policy_file import PolicyError, PolicyProblem, load_policy
from schemas.policy import Policy
from subjects.streams import POLICY_BUCKET

ACTIVE = "active"


class Entry(Protocol):
    """What a key holds."""

    @property
    def value(self) -> bytes | None: ...


class Bucket(Protocol):
    """What is needed of a KV bucket; nats.js.kv.KeyValue is one."""

    async def get(self, key: str) -> Entry: ...
    async def put(self, key: str, value: bytes) -> int: ...
    async def update(self, key: str, value: bytes, last: int | None = None) -> int: ...


@dataclass(frozen=True)
class Revision:
    """A policy as it was applied."""

    number: int
    text: str
    created: datetime
    policy: Policy


@dataclass(frozen=True)
class Kept:
    """A line of the history. Its text may be one that today's rules refuse, so it is not parsed."""

    number: int
    text: str
    created: datetime
    active: bool
    note: str = ""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


class RevisionNotFoundError(LookupError):
    """There is no such revision."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the policy has no revision {number}; `llmbus policy history` lists them")
        self.number = number


class PolicyStore:
    """The policy in its bucket. Errors of the bus come through as they are."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def apply(self, text: str, name: str, *, note: str = "") -> Revision:
        """Make `text` the active policy. The text that is active already makes no new revision. Raises PolicyError."""
        policy = load_policy(text, name)
        kept = await self.history()
        active = next((each for each in kept if each.active), None)
        if active is not None and active.text == text:
            return Revision(active.number, text, active.created, policy)
        number = await self._create(text, kept[-1].number + 1 if kept else 1)
        created = await self._tell_about(number, note)
        await self._point_at(number)
        return Revision(number, text, created, policy)

    async def seed(self, text: str, name: str) -> Revision:
        """The first policy of an empty bus; of many who do this at once, one makes the revision and all get it."""
        load_policy(text, name)
        with contextlib.suppress(KeyWrongLastSequenceError):
            await self._bucket.update(_key(1), text.encode(), last=0)
        if await self._value(_about(1)) is None:
            await self._tell_about(1, f"shipped {name}")
        with contextlib.suppress(KeyWrongLastSequenceError):
            await self._bucket.update(ACTIVE, b"1", last=0)
        return await self.active() or await self.get(1)

    async def active(self) -> Revision | None:
        """The active revision; None when none was ever applied. Raises PolicyError, RevisionNotFoundError."""
        value = await self._value(ACTIVE)
        if not value:
            return None
        if not value.isdigit():
            what, remedy = f"cannot be {value[:40]!r}", "the number of a revision: `llmbus policy rollback N`"
            raise PolicyError((PolicyProblem(f"{POLICY_BUCKET}/{ACTIVE}", 1, 1, ACTIVE, what, remedy),))
        return await self.get(int(value))

    async def get(self, number: int) -> Revision:
        """One revision. Raises RevisionNotFoundError, and PolicyError when today's rules refuse it."""
        kept = await self._kept(number, await self._value(_key(number)))
        if kept is None:
            raise RevisionNotFoundError(number)
        return Revision(number, kept.text, kept.created, load_policy(kept.text, f"{POLICY_BUCKET}/{_key(number)}"))

    async def history(self) -> list[Kept]:
        """Every revision, oldest first."""
        pointer = await self._value(ACTIVE)
        found: list[Kept] = []
        for number in count(1):
            value = await self._value(_key(number))
            if value is None:
                break
            if kept := await self._kept(number, value, active=pointer == str(number).encode()):
                found.append(kept)
        return found

    async def rollback(self, number: int) -> Revision:
        """Make a revision active. Raises RevisionNotFoundError, and PolicyError when today's rules refuse it."""
        revision = await self.get(number)
        await self._point_at(number)
        return revision

    async def _create(self, text: str, number: int) -> int:
        while True:
            try:
                # Not `create`, which would write a number anew that somebody deleted.
                await self._bucket.update(_key(number), text.encode(), last=0)
            except KeyWrongLastSequenceError:
                number += 1
            else:
                return number

    async def _tell_about(self, number: int, note: str) -> datetime:
        created = datetime.now(UTC)
        about = json.dumps({"created": created.isoformat(), "note": note}, ensure_ascii=False)
        await self._bucket.put(_about(number), about.encode())
        return created

    async def _point_at(self, number: int) -> None:
        # Without a check of what was active: of two who do this at once, the later one wins.
        await self._bucket.put(ACTIVE, str(number).encode())

    async def _kept(self, number: int, value: bytes | None, *, active: bool = False) -> Kept | None:
        # Who crashed before writing `about` told nobody the number: the revision does not count.
        if not value or not (about := await self._value(_about(number))):
            return None
        facts = json.loads(about)
        created = datetime.fromisoformat(facts["created"])
        return Kept(number, value.decode(errors="replace"), created, active, facts["note"])

    async def _value(self, key: str) -> bytes | None:
        """What a key holds: None when it was never written, empty when that was deleted."""
        try:
            return (await self._bucket.get(key)).value or b""
        except KeyNotFoundError as error:
            return None if error.entry is None else b""


def _key(number: int) -> str:
    return f"r{number:06}"


def _about(number: int) -> str:
    return f"{_key(number)}.about"
