"""Acknowledge, bring again, or bury: decided here, once, for every consumer of the router.

A handler that returns is done with its message. One that fails for the broker's sake tries again in place; a message
that keeps coming back without an outcome is poison, and goes where it can be looked at.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog

from router.errors import BusError, TooLargeError
from router.ports import Bus, Delivery, Handler, Rest, Stored
from schemas import headers as h
from schemas.ids import message_id
from subjects import Dead
from subjects.streams import ConsumerSpec

log = structlog.get_logger(__name__)

AGAIN_MS = 500
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
SHOWN_CHARS = 500
HEADERS_BYTES = 8_192


@asynccontextmanager
async def consuming(
    bus: Bus, spec: ConsumerSpec, handle: Handler, poisoned: Handler, *, max_in_flight: int, max_deliveries: int
) -> AsyncIterator[None]:
    """Run `handle` on every message, at most `max_in_flight` at once; `poisoned` on one that came too often.

    Leaving gives back what the bus does not take: whoever comes next may be luckier.
    """
    in_flight = 0
    leaving = False

    def deliver(delivery: Delivery) -> Rest:
        nonlocal in_flight
        in_flight += 1
        chosen = handle if delivery.delivered <= max_deliveries else poisoned
        return partial(finish, delivery, chosen, _begin(chosen, delivery))

    async def finish(delivery: Delivery, chosen: Handler, rest: Rest) -> None:
        nonlocal in_flight
        try:
            done = await _until_the_bus_takes_it(chosen, delivery, rest, lambda: leaving)
        except Exception:
            log.exception("delivery.failed", subject=delivery.subject, seq=delivery.seq, delivered=delivery.delivered)
            await delivery.nak(AGAIN_MS)
        else:
            await (delivery.ack() if done else delivery.nak(AGAIN_MS))
        finally:
            in_flight -= 1

    async with bus.consume(spec, deliver, batch=lambda: max_in_flight - in_flight):
        try:
            yield
        finally:
            leaving = True


def _begin(handle: Handler, delivery: Delivery) -> Rest:
    """Its first part; should that fail, the rest says so."""
    try:
        return handle(delivery)
    except Exception as error:
        return partial(_fail, error)


async def _fail(error: Exception) -> None:
    raise error


async def _until_the_bus_takes_it(
    handle: Handler, delivery: Delivery, rest: Rest, given_up: Callable[[], bool]
) -> bool:
    """A broker that is away or full is no fault of the message: hold it and try again, so that it is never poison.

    False when it was given up before.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            await rest()
        except TooLargeError:
            raise  # no waiting makes it smaller
        except BusError as error:
            log.warning("delivery.held", subject=delivery.subject, seq=delivery.seq, error=str(error))
        else:
            return True
        if given_up():
            return False
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        await delivery.working()
        rest = _begin(handle, delivery)


async def insist(publish: Callable[[], Awaitable[Stored]], first: Awaitable[Stored] | None = None) -> None:
    """Publish until the bus has it: what is already paid for is kept in hand, not done again. Raises TooLargeError.

    `first` is the acknowledgement of a first try, sent before.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            await (first if first is not None else publish())
        except TooLargeError:
            raise
        except BusError as error:
            log.warning("publish.held", subject=error.subject, error=str(error))
        else:
            return
        first = None
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def bury(bus: Bus, delivery: Delivery, reason: str, why: str) -> None:
    """Put a copy of the message where it can be looked at, once."""
    headers = {
        h.REASON: why[:SHOWN_CHARS],
        h.ORIGIN: f"{delivery.stream}:{delivery.seq}",
        h.SUBJECT: delivery.subject[:SHOWN_CHARS],
    }
    # Its headers come on top: what was as large as the broker takes is buried without its end. Its origin has it whole.
    data = delivery.data[: bus.max_payload_bytes - HEADERS_BYTES]
    await bus.publish(
        str(Dead(reason)), data, headers=headers, msg_id=message_id("dead", delivery.stream, str(delivery.seq))
    )
