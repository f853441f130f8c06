"""What can go wrong between the router and what it stands on, and how groups of tasks end. Refusals are values.

LlmbusError
├── AttemptError        a provider's call failed; carries the classified Failure
├── RequestFailed       a request ended, or was refused, with a typed error
└── BusError            the broker did not do what was asked
    ├── Unknown         no acknowledgement came: it may or may not be stored; try again with the same message id
    ├── Conflict        the subject is already written (write-once), perhaps by this very message
    ├── TooLarge        the message exceeds what the broker takes
    └── Unavailable     the broker or the stream is away, or its storage is full
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from schemas.failure import Error, ErrorType, Failure, FailureKind, Spent
from schemas.reply import Reply


class LlmbusError(Exception):
    """Base of all errors of this project."""


class AttemptError(LlmbusError):
    """A provider's call failed, and why."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(f"{failure.kind.value}: {failure.message}")

    @classmethod
    def of(
        cls, kind: FailureKind, message: str, *, status: int | None = None, retry_after_ms: int | None = None,
        upstream: str | None = None,
    ) -> "AttemptError":  # fmt: skip
        return cls(Failure(kind=kind, message=message, status=status, retry_after_ms=retry_after_ms, upstream=upstream))


class RequestFailedError(LlmbusError):
    """The request ended with a typed error; `reply` holds all that is known, `error` what went wrong."""

    def __init__(self, error: Error, reply: Reply | None = None) -> None:
        self.error = error
        self.reply = reply
        super().__init__(f"{error.type.value}: {error.message} (request {error.request_id})")

    @classmethod
    def of(
        cls, kind: ErrorType, rid: str, message: str, *, retry_after_ms: int | None = None, spent: Spent = "no"
    ) -> "RequestFailedError":
        return cls(Error.of(kind, rid, message, retry_after_ms=retry_after_ms, spent=spent))


class BusError(LlmbusError):
    """The broker did not do what was asked of `subject`."""

    def __init__(self, subject: str, message: str) -> None:
        self.subject = subject
        super().__init__(f"{subject}: {message}")


class UnknownError(BusError):
    """No acknowledgement came in time. Never treat it as failed: publish again with the same message id."""


class ConflictError(BusError):
    """A write-once subject is taken. A publish that was sent twice meets itself: only reading it back tells."""


class TooLargeError(BusError):
    """The message is larger than the broker's limit and was not sent."""


class UnavailableError(BusError):
    """The broker, the stream or its storage cannot take it now."""


@contextmanager
def one_error() -> Iterator[None]:
    """Around a task group: when a single error ended it, raise that error instead of a group of one."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise


STOP_AGAIN_S = 1.0


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel until they have ended: `asyncio.wait_for`, which nats-py uses, can swallow one (Python 3.11)."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=STOP_AGAIN_S)
