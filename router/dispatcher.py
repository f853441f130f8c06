"""Requests in, work out: gather the world, decide, record the decision, then apply it.

The record is written once per (client, request id), and before any work is. So a request that comes again, from a
killed router or from its own client, meets its first decision and follows that one.
"""

from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import structlog
from pydantic import ValidationError

from router.consume import bury, consuming
from router.core.admit import Asked, admit
from router.core.decide import Ruling, deadline_at_ms, decide
from router.errors import ConflictError, TooLargeError, UnavailableError
from router.ports import Bus, Delivery, Letter, Rest, Stored, later
from router.replies import tell_again, write_reply
from router.sending import send_work
from router.waits import Waiting, Waits
from router.world_book import WorldBook
from schemas import headers as h
from schemas.decision import Decided, Decision, Forward, Refuse, Wait
from schemas.failure import Error, ErrorType
from schemas.reply import Reply
from schemas.request import request_hash
from schemas.work import WorkItem
from schemas.world import World
from subjects import Event, Request, parse
from subjects import Reply as ReplySubject
from subjects.grammar import EventKind
from subjects.streams import DISPATCHER, EVENTS, ID_TAKEN_S, REPLIES, REQUESTS, WAITERS, WORK

log = structlog.get_logger(__name__)

MAX_IN_FLIGHT = 128
"""Enough to keep the broker busy; what is held costs memory."""


class Dispatcher:
    """Stateless; any number of replicas share its consumers."""

    def __init__(self, bus: Bus, book: WorldBook) -> None:
        self._bus = bus
        self._book = book
        self._waits = Waits(bus, book.cancels)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        limit = self._book.in_force.policy.limits.max_deliveries
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._waits.running())
            for spec, handle, poisoned in (
                (DISPATCHER, self._requested, later(self._poisoned)),
                (WAITERS, later(self._waited), later(self._given_up)),
            ):
                await stack.enter_async_context(
                    consuming(self._bus, spec, handle, poisoned, max_in_flight=MAX_IN_FLIGHT, max_deliveries=limit)
                )
            yield

    def _requested(self, delivery: Delivery) -> Rest:
        subject = parse(delivery.subject)
        if not isinstance(subject, Request):
            # Stored under a name that is no token, so there is no client to answer.
            why = f"{delivery.subject!r} is no llm.req.<capability>[.<client>]"
            return partial(bury, self._bus, delivery, "bad_subject", why)
        asked = admit(subject, delivery.data, delivery.headers, delivery.seq, self._book.in_force.policy.limits)
        self._book.retries.requested(self._bus.now_ms())
        if asked.unreadable:
            return partial(self._unreadable, asked, delivery)
        return self._dispatch(asked, delivery.timestamp_ms, fresh=delivery.delivered == 1)

    async def _unreadable(self, asked: Asked, delivery: Delivery) -> None:
        await bury(self._bus, delivery, "unreadable", asked.refusal.message if asked.refusal else "")
        await self._dispatch(asked, delivery.timestamp_ms, fresh=False)()

    async def _waited(self, delivery: Delivery) -> None:
        try:
            seq = Waiting.decode(delivery.data).request_seq
        except ValidationError:
            await bury(self._bus, delivery, "bad_wait", "not a waiting request")
            return
        asked, received_ms = await self._read_back(seq)
        await self._book.cancels.look((asked.client, asked.rid))
        await self._dispatch(asked, received_ms, fresh=delivery.delivered == 1)()

    async def _read_back(self, seq: int) -> tuple[Asked, int]:
        """A request that was here before, and when it was stored."""
        letter = await self._bus.get(REQUESTS, seq)
        subject = parse(letter.subject) if letter else None
        if letter is None or not isinstance(subject, Request):
            raise UnavailableError(REQUESTS, f"request {seq} cannot be read back")
        asked = admit(subject, letter.data, letter.headers, seq, self._book.in_force.policy.limits)
        return asked, letter.timestamp_ms

    def _dispatch(self, asked: Asked, received_ms: int, *, fresh: bool) -> Rest:
        """`fresh`: it was never seen before, as far as the broker can tell."""
        key = (asked.client, asked.rid)
        world = self._book.world(received_ms=received_ms, request_seq=asked.seq, key=key)
        ruling = decide(asked, world, self._book.in_force.policy)
        if isinstance(choice := ruling.decision.choice, Wait):
            return self._waits.begin(key, asked.seq, ruling.decision.urgency, choice.until_ms)
        self._waits.over(key)
        recorded = self._record(asked, world, ruling.decision)
        if fresh and (work := _work(asked, world, ruling)) is not None:
            return self._forward_at_once(asked, world, ruling, recorded, work)
        return partial(self._once_recorded, asked, world, ruling, recorded)

    async def _once_recorded(self, asked: Asked, world: World, ruling: Ruling, recorded: Awaitable[Stored]) -> None:
        try:
            await recorded
        except ConflictError:
            await self._decided_before(asked, world, ruling)
        else:
            await self._apply(asked, world, ruling)

    def _forward_at_once(
        self, asked: Asked, world: World, ruling: Ruling, recorded: Awaitable[Stored], work: WorkItem
    ) -> Rest:
        """The work right behind its record on the same connection, without the wait in between.

        Should the record turn out to be another request's, the work is a double: the broker drops it by its message id,
        and one whose id it has forgotten is taken back.
        """
        try:
            forwarded = send_work(self._bus, work)
            self._book.sent(work.target)
        except TooLargeError as error:
            return partial(self._recorded_too_large, asked, world, work.decision, recorded, error)

        async def rest() -> None:
            try:
                await recorded
            except ConflictError:
                await self._decided_before(asked, world, ruling, doubled=await forwarded)
            else:
                await forwarded

        return rest

    def _record(self, asked: Asked, world: World, decision: Decision, *, after: int | None = None) -> Awaitable[Stored]:
        """`after`: the sequence of a record that this one may follow; without it there may be none."""
        decided = Decided(
            client=asked.client,
            rid=asked.rid,
            request_hash=asked.request_hash,
            request_seq=asked.seq,
            capability=asked.capability,
            agent=asked.request.agent if asked.request else None,
            world=world,
            decision=decision,
        )
        headers = {} if after is None else {h.EXPECTED_LAST_SUBJECT_SEQUENCE: str(after)}
        return self._bus.send(_event(asked, "decided"), decided.encode(), headers=headers, first=after is None)

    async def _apply(self, asked: Asked, world: World, ruling: Ruling) -> None:
        choice = ruling.decision.choice
        if isinstance(choice, Forward):
            work = _work(asked, world, ruling)
            if work is not None:
                try:
                    self._book.sent(work.target)
                    await send_work(self._bus, work)
                except TooLargeError as error:
                    await self._too_large(asked, world, work.decision, error)
                return
            # Recorded as to be forwarded, under a policy that is gone; today's leaves nothing to forward.
            choice = Refuse(error=ErrorType.INTERNAL, message="the policy changed while it was being decided")
        if isinstance(choice, Refuse):
            await write_reply(self._bus, _refused(asked, world, ruling.decision.line(), choice))

    async def _recorded_too_large(
        self, asked: Asked, world: World, line: str, recorded: Awaitable[Stored], error: TooLargeError
    ) -> None:
        with suppress(ConflictError):  # of an earlier try
            await recorded
        await self._too_large(asked, world, line, error)

    async def _too_large(self, asked: Asked, world: World, line: str, error: TooLargeError) -> None:
        refuse = Refuse(error=ErrorType.PAYLOAD_TOO_LARGE, message=str(error))
        await write_reply(self._bus, _refused(asked, world, line, refuse))

    async def _decided_before(
        self, asked: Asked, world: World, ruling: Ruling, *, doubled: Stored | None = None
    ) -> None:
        """It has a record: ours, from before a crash or a lost acknowledgement, or another request's under this id."""
        letter = await self._bus.last(EVENTS, _event(asked, "decided"))
        if letter is None:
            raise UnavailableError(EVENTS, "the event stream takes no message")
        before = Decided.decode(letter.data)
        reply_subject = str(ReplySubject(asked.client, asked.rid))
        stored = await self._bus.last(REPLIES, reply_subject)
        long_ago = world.as_of_ms - letter.timestamp_ms > ID_TAKEN_S * 1000
        sent = doubled is not None and not doubled.duplicate
        if before.request_seq == asked.seq:
            # Long ago it was answered, and the answer is gone: a consumer that was made anew brings it all again.
            if stored is None and not long_ago:
                again = decide(asked, before.world, self._book.in_force.policy)
                await self._apply(asked, before.world, Ruling(before.decision, again.chat))
            return
        # A reply younger than the request is what its own work has brought.
        unanswered = stored is None or stored.timestamp_ms >= world.received_ms
        same = before.request_hash == asked.request_hash
        if long_ago and unanswered:
            # After the retention an id is new.
            await self._record(asked, world, ruling.decision, after=letter.seq)
            if not sent:
                await self._apply(asked, world, ruling)
            return
        if sent and doubled is not None:
            # The first one's work was never stored, and would be dropped now: ours has taken its message id.
            in_its_place = unanswered and isinstance(before.decision.choice, Forward)
            if in_its_place and not same:
                await self._send_anew(before)
            if not (in_its_place and same):
                await self._bus.delete(WORK, doubled.seq)
        if not same:
            await self._conflict(asked, world, reply_subject)
        elif stored is not None:
            await tell_again(self._bus, reply_subject, stored.data, dict(stored.headers))

    async def _send_anew(self, before: Decided) -> None:
        first, _ = await self._read_back(before.request_seq)
        again = decide(first, before.world, self._book.in_force.policy)
        work = _work(first, before.world, Ruling(before.decision, again.chat))
        if work is not None:
            await send_work(self._bus, work, anew=True)

    async def _conflict(self, asked: Asked, world: World, reply_subject: str) -> None:
        """The id is taken by another request: answered under the id of its sequence, and heard under its own."""
        own = f"seq-{asked.seq}"
        refuse = Refuse(
            error=ErrorType.IDEMPOTENCY_CONFLICT,
            message=f"request id {asked.rid!r} was used for another request; its answer to this one is at {own}",
        )
        decision = Decision(choice=refuse, stage="admit")
        reply = _refused(asked, world, decision.line(), refuse)
        await tell_again(self._bus, reply_subject, reply.encode(), reply.headers())
        renamed = replace(asked, rid=own, request=None, refusal=refuse)
        await self._dispatch(renamed, world.received_ms, fresh=False)()

    async def _poisoned(self, delivery: Delivery) -> None:
        await bury(self._bus, delivery, "poison", f"delivered {delivery.delivered} times without a decision")
        await self._refuse_as_poison(delivery)

    async def _refuse_as_poison(self, letter: Delivery | Letter) -> None:
        """Answer it by its names only: its body is what may kill."""
        subject = parse(letter.subject)
        if not isinstance(subject, Request):
            return
        named = admit(subject, b"", letter.headers, letter.seq, self._book.in_force.policy.limits)
        refuse = Refuse(error=ErrorType.POISON, message="it came back too often without a decision")
        asked = replace(named, request_hash=request_hash(subject.capability, letter.data), refusal=refuse)
        world = self._book.world(received_ms=letter.timestamp_ms, request_seq=letter.seq)
        decision = Decision(choice=refuse, stage="admit")
        with suppress(ConflictError):
            await self._record(asked, world, decision)
        await write_reply(self._bus, _refused(asked, world, decision.line(), refuse))

    async def _given_up(self, delivery: Delivery) -> None:
        """A waiting request that cannot be decided: answered as poison, by the names of the request it stands for."""
        await bury(self._bus, delivery, "poison", f"delivered {delivery.delivered} times without a decision")
        with suppress(ValidationError):
            letter = await self._bus.get(REQUESTS, Waiting.decode(delivery.data).request_seq)
            if letter is not None:
                await self._refuse_as_poison(letter)


def _event(asked: Asked, kind: EventKind) -> str:
    return str(Event(asked.client, asked.rid, kind))


def _work(asked: Asked, world: World, ruling: Ruling) -> WorkItem | None:
    """The first attempt; None when nothing is to be forwarded."""
    request, forward, chat = asked.request, ruling.decision.choice, ruling.chat
    if request is None or chat is None or not isinstance(forward, Forward):
        return None
    return WorkItem(
        client=asked.client,
        rid=asked.rid,
        request_hash=asked.request_hash,
        request_seq=asked.seq,
        capability=asked.capability,
        agent=request.agent,
        task=ruling.decision.task,
        urgency=request.urgency,
        attempt=1,
        target=forward.target,
        fallbacks=forward.fallbacks,
        chat=chat,
        max_cost_usd=request.constraints.max_cost_usd,
        received_ms=world.received_ms,
        deadline_at_ms=deadline_at_ms(request, world),
        sent_ms=world.as_of_ms,
        policy=world.policy,
        decision=ruling.decision.line(),
        traceparent=asked.traceparent,
    )


def _refused(asked: Asked, world: World, line: str, refuse: Refuse) -> Reply:
    error = Error.of(refuse.error, asked.rid, refuse.message, retry_after_ms=refuse.retry_after_ms)
    return Reply.refused(
        client=asked.client,
        request_hash=asked.request_hash,
        error=error,
        total_ms=max(0, world.as_of_ms - world.received_ms),
        decision=line,
        policy=world.policy,
        traceparent=asked.traceparent,
    )
