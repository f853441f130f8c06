"""Acknowledge, bring again, or bury: decided here, once, for every consumer of the router.

A handler that returns is done with its message. One that fails for the broker's sake gets it again soon; a message that
keeps coming back without an outcome is poison, and goes where it can be looked at.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from router.errors import BusError
from router.ports import Bus, Delivery
from schemas import headers as h
from schemas.ids import message_id
from subjects import Dead
from subjects.streams import ConsumerSpec

log = structlog.get_logger(__name__)

AGAIN_MS = 500

Handle = Callable[[Delivery], Awaitable[None]]


@asynccontextmanager
async def consuming(
    bus: Bus, spec: ConsumerSpec, handle: Handle, poisoned: Handle, *, max_in_flight: int, max_deliveries: int
) -> AsyncIterator[None]:
    """Run `handle` on every message, at most `max_in_flight` at once; `poisoned` on one that came too often."""
    in_flight = 0

    async def deliver(delivery: Delivery) -> None:
        nonlocal in_flight
        in_flight += 1
        try:
            await (handle if delivery.delivered <= max_deliveries else poisoned)(delivery)
        except BusError as error:
            log.warning("delivery.again", subject=delivery.subject, seq=delivery.seq, error=str(error))
            await delivery.nak(AGAIN_MS)
        except Exception:
            log.exception("delivery.failed", subject=delivery.subject, seq=delivery.seq, delivered=delivery.delivered)
            await delivery.nak(AGAIN_MS)
        else:
            await delivery.ack()
        finally:
            in_flight -= 1

    async with bus.consume(spec, deliver, batch=lambda: max_in_flight - in_flight):
        yield


async def bury(bus: Bus, delivery: Delivery, reason: str, why: str) -> None:
    """Put a copy of the message where it can be looked at, once."""
    origin = f"{delivery.stream}:{delivery.seq}"
    await bus.publish(
        str(Dead(reason)),
        delivery.data,
        headers={h.REASON: why[:500], h.ORIGIN: origin, "Llm-Subject": delivery.subject},
        msg_id=message_id("dead", delivery.stream, str(delivery.seq)),
    )
