"""What limited clients have spent today, and what ends when a request of theirs has its reply.

Spent is what the audit chain says, of requests that came by NATS too: read when it is first asked for, heard from then
on. Every edge gives back the places of requests that have their replies: the one that took a place may be gone.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Self

import structlog
from pydantic import ValidationError

from adapters.bus import JetStreamBus
from adapters.edge.limits import DAY_MS, MINUTE_MS
from adapters.meters import Meters
from router.errors import BusError, one_error, stop
from router.ports import Headers, Link
from schemas.event import AttemptEnded, Replied
from schemas.work import AttemptRecord
from subjects import Event, Open, Reply, parse, token
from subjects.grammar import EventKind
from subjects.streams import EVENTS, OPEN, REPLIES

log = structlog.get_logger(__name__)

COSTLY: Final[dict[EventKind, type[Replied] | type[AttemptEnded]]] = {"replied": Replied, "attempt_ended": AttemptEnded}
"""The events that book an attempt."""
AT_ONCE: Final = 64
KEPT_MINUTES: Final = 35
"""Longer than any request takes."""


@dataclass(slots=True)
class Account:
    """One client's day, by UTC."""

    link: Link | None
    """The connection that all of it was heard on: another one may have missed something. None: not read yet."""
    day: int
    spent: Decimal = Decimal(0)
    booked: set[int] = field(default_factory=set)
    """Attempts that cost something, by a hash of their names: events may come twice."""
    ended: set[str] = field(default_factory=set)
    """Requests that have their replies, and still their places, which count no more."""

    def turn(self, day: int) -> None:
        if day > self.day:
            self.day, self.spent, self.booked = day, Decimal(0), set()

    def book(self, rid: str, attempt: AttemptRecord | None) -> None:
        if attempt is not None and attempt.cost_usd and (name := hash((rid, attempt.attempt_id))) not in self.booked:
            self.booked.add(name)
            self.spent += attempt.cost_usd


@dataclass(frozen=True, slots=True)
class _Ended:
    account: Account
    client: str
    rid: str
    tokens: int


class Accounts:
    """One per edge; an async context."""

    def __init__(self, bus: JetStreamBus, meters: Meters) -> None:
        self._bus = bus
        self._meters = meters
        self._accounts: dict[str, Account] = {}
        self._opening: dict[str, asyncio.Task[Account | BusError]] = {}
        self._tasks = asyncio.TaskGroup()
        self._listening = AsyncExitStack()
        self._ended: asyncio.Queue[_Ended] = asyncio.Queue()
        self._reserved: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()
        """By client and request: the minute, and the tokens that were counted there."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        with one_error():
            async with self._tasks, self._listening:
                settling = self._tasks.create_task(self._settle())
                try:
                    yield self
                finally:
                    await stop(settling, *self._opening.values())

    async def of(self, client: str) -> Account:
        """Up to date, and heard from now on. Raises BusError."""
        account = self._accounts.get(client)
        if account is None or account.link != self._bus.link():
            account = await self._opened(client)
        account.turn(self._today())
        return account

    def reserve(self, client: str, rid: str, minute: int, tokens: int) -> None:
        """So many tokens were counted beforehand."""
        self._reserved[client, rid] = minute, tokens
        while next(iter(self._reserved.values()))[0] < minute - KEPT_MINUTES:
            self._reserved.popitem(last=False)

    async def _opened(self, client: str) -> Account:
        """Once for all who ask meanwhile; it goes on though whoever asked first waits no longer. Raises BusError."""
        if (opening := self._opening.get(client)) is None:
            opening = self._opening[client] = self._tasks.create_task(self._try(client))
            opening.add_done_callback(lambda _: self._opening.pop(client))
        found = await asyncio.shield(opening)
        if isinstance(found, BusError):
            raise found
        return found

    async def _try(self, client: str) -> "Account | BusError":
        try:
            return await self._open(client)
        except BusError as error:
            return error

    async def _open(self, client: str) -> Account:
        link = self._bus.link()
        account = self._accounts.get(client)
        if account is None:
            account = Account(None, self._today())
            for kind in COSTLY:
                subject = f"llm.evt.{token('client', client)}.*.{kind}"
                await self._listening.enter_async_context(self._bus.listen(subject, self._heard))
            self._accounts[client] = account
        account.turn(self._today())
        for kind, event_type in COSTLY.items():
            async for letter in self._bus.read(EVENTS, f"llm.evt.{client}.*.{kind}", since_ms=account.day * DAY_MS):
                event = event_type.decode(letter.data)
                account.book(event.rid, event.attempt)
        await self._sweep(client)
        account.link = link
        return account

    async def _sweep(self, client: str) -> None:
        """Give back the places whose replies nobody has heard."""
        async for letter in self._bus.read(OPEN, f"llm.open.{client}.*"):
            address = parse(letter.subject)
            if isinstance(address, Open) and await self._bus.last(REPLIES, str(Reply(client, address.rid))):
                await self._meters.give_back(client, address.rid)

    def _heard(self, subject: str, data: bytes, _headers: Headers) -> None:
        address = parse(subject)
        if not isinstance(address, Event) or (account := self._accounts.get(address.client)) is None:
            return
        try:
            event = COSTLY[address.kind].decode(data)
        except ValidationError as error:
            log.warning("account.unreadable", client=address.client, rid=address.rid, errors=error.error_count())
            return
        account.turn(self._today())
        account.book(address.rid, event.attempt)
        if isinstance(event, Replied):
            usage = event.attempt.usage if event.attempt else None
            used = usage.tokens_in + usage.tokens_out if usage else 0
            account.ended.add(address.rid)
            self._ended.put_nowait(_Ended(account, address.client, address.rid, used))

    async def _settle(self) -> None:
        """Give back what replies have freed, for ever."""
        while True:
            ended = [await self._ended.get()]
            while not self._ended.empty() and len(ended) < AT_ONCE:
                ended.append(self._ended.get_nowait())
            await asyncio.gather(*map(self._end, ended))

    async def _end(self, ended: _Ended) -> None:
        """A place that cannot be given back ends by itself."""
        try:
            await self._meters.give_back(ended.client, ended.rid)
            await self._settle_tokens(ended)
        except BusError as error:
            log.warning("account.unsettled", client=ended.client, rid=ended.rid, error=str(error))
        finally:
            ended.account.ended.discard(ended.rid)

    async def _settle_tokens(self, ended: _Ended) -> None:
        """What was used instead of what was expected; what comes in another minute only adds to that one."""
        minute, expected = self._reserved.pop((ended.client, ended.rid), (0, 0))
        now, more = self._bus.now_ms() // MINUTE_MS, ended.tokens - expected
        if minute and more and (more > 0 or now == minute):
            await self._meters.count(ended.client, "tokens", now, more)

    def _today(self) -> int:
        return self._bus.now_ms() // DAY_MS
