"""Keeps every revision of the policy on the bus for ever, and says which one is active.

Key `r000001`, `r000002`, ... holds the text of a revision and is written once, and so is `r000001.prices`: what the
models without a price of their own cost, looked up when the revision came. `r000001.about` says when and why that was;
it is written after both, and a revision counts only with it. `active` holds the number of the active one, so that its
own history tells what was active when.

Only direct reads are used: nats-py's `history` and `keys` leave a consumer behind at every call, and find nothing when
the entries are on their way as they ask how many will come.
"""

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Protocol

from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from pydantic import ValidationError

from ops import prices
from ops.policy_file import PolicyError, PolicyProblem, load_policy
from schemas.policy import Policy, Price
from schemas.prices import PriceTable
from subjects.streams import POLICY_BUCKET

ACTIVE = "active"

Resolve = Callable[[Policy], Awaitable[PriceTable | None]]
"""Looks up the prices that a policy leaves open; None when there are none."""


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
    """With the prices of `prices` where it has none of its own."""
    prices: PriceTable | None = None


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

    def __init__(self, bucket: Bucket, resolve: Resolve = prices.resolve) -> None:
        self._bucket = bucket
        self._resolve = resolve

    async def apply(self, text: str, name: str, *, note: str = "") -> Revision:
        """Make `text` the active policy. Raises PolicyError, PriceLookupError.

        The text that is active already makes no new revision, unless prices have changed.
        """
        policy = load_policy(text, name)
        table = await self._resolve(policy)
        kept = await self.history()
        active = next((each for each in kept if each.active), None)
        if active is not None and active.text == text:
            with contextlib.suppress(PolicyError):  # prices that cannot be read are mended by a new revision
                before = await self._prices(active.number)
                if _same(before, table):
                    return _revision(active, policy, before)
        number = await self._create(text, kept[-1].number + 1 if kept else 1)
        await self._put_prices(number, table)
        created = await self._tell_about(number, note)
        await self._point_at(number)
        return _revision(Kept(number, text, created, active=True), policy, table)

    async def seed(self, text: str, name: str) -> Revision:
        """The first policy of an empty bus; of many who do this at once, one makes the revision and all get it.

        Raises PolicyError, PriceLookupError.
        """
        table = await self._resolve(load_policy(text, name))
        with contextlib.suppress(KeyWrongLastSequenceError):
            await self._bucket.update(_key(1), text.encode(), last=0)
        if await self._value(_about(1)) is None:
            if (found := await self._value(_key(1))) != text.encode():
                # Somebody else's, who may have died since: its prices, not ours.
                table = await self._resolve(load_policy((found or b"").decode(), f"{POLICY_BUCKET}/{_key(1)}"))
            await self._put_prices(1, table)
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
        policy = load_policy(kept.text, f"{POLICY_BUCKET}/{_key(number)}")
        return _revision(kept, policy, await self._prices(number))

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

    async def _put_prices(self, number: int, table: PriceTable | None) -> None:
        if table is not None:
            with contextlib.suppress(KeyWrongLastSequenceError):  # seeded by another just now
                await self._bucket.update(_prices(number), table.encode(), last=0)

    async def _prices(self, number: int) -> PriceTable | None:
        """Raises PolicyError when they cannot be read: what costs something must not seem to have no price."""
        value = await self._value(_prices(number))
        if not value:
            return None
        try:
            return PriceTable.decode(value)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            what, remedy = f"cannot be read: {error.errors()[0]['msg']}", "apply the policy again"
            raise PolicyError(
                (PolicyProblem(f"{POLICY_BUCKET}/{_prices(number)}", 1, 1, where or "prices", what, remedy),)
            ) from None

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


def _prices(number: int) -> str:
    return f"{_key(number)}.prices"


def _revision(kept: Kept, policy: Policy, table: PriceTable | None) -> Revision:
    return Revision(kept.number, kept.text, kept.created, table.fill(policy) if table else policy, table)


def _same(one: PriceTable | None, other: PriceTable | None) -> bool:
    """Whether they say the same; the day it was looked up is no difference."""
    return _unsourced(one) == _unsourced(other)


def _unsourced(table: PriceTable | None) -> dict[str, Price]:
    return {name: price.model_copy(update={"source": None}) for name, price in table.models.items()} if table else {}
