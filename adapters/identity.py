"""Who asks an edge, and what it may: `adapters.edge.ports.Identity` by the keys and limits on the bus."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Final

from adapters.accounts import Accounts
from adapters.bus import JetStreamBus
from adapters.edge import limits as may
from adapters.edge.ports import Submission
from adapters.key_ring import KeyRing
from adapters.meters import Meters, Place
from router.errors import BusError, RequestFailedError
from router.ports import NO_HEADERS, Headers
from schemas import headers as h
from schemas.client import ClientLimits, Weight
from schemas.failure import ErrorType
from subjects import Reply, is_token
from subjects.grammar import MeterKind
from subjects.streams import REPLIES

LOCAL: Final = "local"
ADMIT_S: Final = 2.0
RETRY_AFTER_MS: Final = 2_000
GRACE_S: Final = 10
"""A reply comes by the deadline and half of this."""

Weigh = Callable[[Submission, tuple[str, ...] | None], Weight]
"""What a request may come to, answered by one of these models or, without any, by whichever the policy has."""


class BusIdentity:
    """One per edge. Without `keys_needed` a client names itself, unless it shows a key of ours."""

    def __init__(
        self, bus: JetStreamBus, ring: KeyRing, accounts: Accounts, meters: Meters, weigh: Weigh, *, keys_needed: bool
    ) -> None:
        self._bus = bus
        self._ring = ring
        self._accounts = accounts
        self._meters = meters
        self._weigh = weigh
        self._keys_needed = keys_needed

    def caller(self, headers: Mapping[str, str], rid: str) -> str:
        key = may.shown_key(headers)
        if self._keys_needed or key.startswith(may.KEY_PREFIX):
            owner = self._ring.owner(key)
            if owner is None:
                raise may.unauthorized(rid)
            return owner.name
        _raise(may.from_elsewhere(headers, rid))
        name = headers.get("x-llm-client", LOCAL)
        if not is_token(name):
            raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, "x-llm-client must be 1 to 64 of A-Z a-z 0-9 _ -")
        return name

    def models(self, client: str) -> frozenset[str] | None:
        known = self._ring.clients.get(client)
        return None if known is None or known.limits.models is None else frozenset(known.limits.models)

    def concurrent(self, client: str) -> int | None:
        known = self._ring.clients.get(client)
        return None if known is None else known.limits.concurrent

    async def admit(self, submission: Submission) -> Headers:
        client = self._ring.clients.get(submission.client)
        if client is None:
            return NO_HEADERS
        limits = client.limits
        _raise(may.forbidden(limits, submission))
        headers = {} if limits.models is None else {h.ALLOWED_MODELS: ",".join(limits.models)}
        async with self._in_time(submission.rid):
            minute = None
            if limits.requests_per_minute is not None:
                minute = await self._count("requests", 1, limits.requests_per_minute, submission)
            if limits.takes_places or limits.tokens_per_minute is not None:
                try:
                    headers |= await self._reserve(limits, submission)
                except RequestFailedError:
                    if minute is not None:
                        await self._meters.count(submission.client, "requests", minute, -1)
                    raise
        return headers

    async def _reserve(self, limits: ClientLimits, asked: Submission) -> dict[str, str]:
        """A place, money and tokens. A request that was answered before takes nothing: its answer is told again."""
        account = await self._accounts.of(asked.client)  # first: it must hear the reply
        weight = self._weigh(asked, limits.models)
        if not limits.takes_places:
            await self._count_tokens(limits, weight, asked)
            return {}
        wanted, most = may.micro_usd(weight.usd), may.places(limits)
        place = Place(0)
        try:
            place = await self._meters.take(asked.client, asked.rid, wanted, asked.deadline_ms // 1000 + GRACE_S)
            if asked.named and await self._bus.last(REPLIES, str(Reply(asked.client, asked.rid))) is not None:
                self._accounts.leave(asked.client, asked.rid)
                return _budget(limits, Decimal(0))
            # Who is before whom matters only when not all have room, and for money.
            roomy = limits.usd_per_day is None and await self._meters.taken(asked.client) <= most
            before = (
                [] if roomy else await self._meters.before(asked.client, place.seq, at_most=most, without=account.ended)
            )
            _raise(may.too_many(most, len(before), asked))
            if place.new:
                await self._count_tokens(limits, weight, asked)
        except BaseException:
            if place.new:
                self._accounts.leave(asked.client, asked.rid)
            raise
        return _budget(limits, may.budget(limits.usd_per_day or Decimal(0), account.spent, before, wanted))

    async def _count_tokens(self, limits: ClientLimits, weight: Weight, asked: Submission) -> None:
        if limits.tokens_per_minute is not None:
            minute = await self._count("tokens", weight.tokens, limits.tokens_per_minute, asked)
            self._accounts.reserve(asked.client, asked.rid, minute, weight.tokens)

    async def _count(self, kind: MeterKind, amount: int, limit: int, asked: Submission) -> int:
        """The minute in which it was counted. What is refused is not."""
        now_ms = self._bus.now_ms()
        minute = now_ms // may.MINUTE_MS
        used = await self._meters.count(asked.client, kind, minute, amount)
        if refusal := may.over_the_minute(kind, used, amount, limit, now_ms, asked):
            await self._meters.count(asked.client, kind, minute, -amount)
            raise refusal
        return minute

    @asynccontextmanager
    async def _in_time(self, rid: str) -> AsyncIterator[None]:
        """Raises RequestFailedError: storage_unavailable."""
        if not self._bus.link().up:
            raise _away(rid, "no connection")
        try:
            async with asyncio.timeout(ADMIT_S):
                yield
        except (BusError, TimeoutError) as error:
            raise _away(rid, str(error) or "no answer") from None


def _budget(limits: ClientLimits, usd: Decimal) -> dict[str, str]:
    return {} if limits.usd_per_day is None else {h.BUDGET_USD: f"{usd:f}"}


def _away(rid: str, why: str) -> RequestFailedError:
    words = f"the bus is away, and without it nobody can tell what may be used: {why}"
    return RequestFailedError.of(ErrorType.STORAGE_UNAVAILABLE, rid, words, retry_after_ms=RETRY_AFTER_MS)


def _raise(refusal: RequestFailedError | None) -> None:
    if refusal is not None:
        raise refusal
