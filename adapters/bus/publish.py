"""Pipelined publishing: many messages on the way at once, one inbox for all acknowledgements, nothing forgotten.

A publish whose acknowledgement does not come is sent again under its message id, so that the stream drops the double,
until `GIVE_UP_S`; only then is it unknown. A broker that restarts is thus waited for.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from adapters.bus.connection import BusClient
from adapters.bus.wire import Wire, check_size, frame, header_block
from router.errors import BusError, ConflictError, TooLargeError, UnavailableError, UnknownError
from router.ports import Headers, Stored
from schemas import headers as h

ACK_TIMEOUT_S = 2.0
RETRY_S = 0.1
GIVE_UP_S = 30.0
CONFLICTS = frozenset({10071, 10164})
STORE_FAILED = 10077
TOO_LARGE = 10054
CONFIRMED: dict[str, Any] = {"stream": "", "seq": 0}


@dataclass(slots=True)
class _Pending:
    subject: str
    frame: bytes
    done: asyncio.Future[Stored]
    first_sent: float
    send_again: float
    """0 when it is not on this connection."""
    repeatable: bool
    confirms: bool
    """It is an acknowledgement itself, and what the broker says to it is empty."""
    sent: bool = False
    last_error: str = ""


class Publisher:
    """Publishes into streams over one connection. `open` before use; run `watch` as long as it lives."""

    def __init__(self, client: BusClient, wire: Wire) -> None:
        self._client = client
        self._wire = wire
        self._prefix = client.new_inbox()
        self._pending: dict[str, _Pending] = {}
        self._count = 0

    async def open(self) -> None:
        await self._client.subscribe_direct(f"{self._prefix}.*", self._acknowledged)

    def send(
        self, subject: str, data: bytes, *, headers: Headers, msg_id: str | None, first: bool
    ) -> asyncio.Future[Stored]:
        """Write the message; the future is its acknowledgement."""
        wire = dict(headers)
        if msg_id is not None:
            wire[h.MSG_ID] = msg_id
        if first:
            wire[h.EXPECTED_LAST_SUBJECT_SEQUENCE] = "0"
        block = header_block(wire) if wire else b""
        check_size(self._client, subject, len(block) + len(data))
        return self._start(subject, block, data, repeatable=msg_id is not None or first)

    def confirm(self, subject: str, data: bytes) -> asyncio.Future[Stored]:
        """Send an acknowledgement; the future is the broker's word that it took it. It may be sent twice."""
        return self._start(subject, b"", data, repeatable=True, confirms=True)

    def _start(
        self, subject: str, block: bytes, data: bytes, *, repeatable: bool, confirms: bool = False
    ) -> asyncio.Future[Stored]:
        self._count += 1
        key = str(self._count)
        now = time.monotonic()
        done: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        ready = frame(subject, f"{self._prefix}.{key}", block, data)
        self._pending[key] = pending = _Pending(subject, ready, done, now, now + ACK_TIMEOUT_S, repeatable, confirms)
        if confirms and self._wire.write_later(ready):
            pending.sent = True
        else:
            self._write(pending)
        return done

    async def watch(self) -> None:
        """Send again what is overdue, for ever."""
        while True:
            await asyncio.sleep(RETRY_S)
            now = time.monotonic()
            for key, pending in list(self._pending.items()):
                if pending.done.done():
                    self._pending.pop(key, None)
                elif now >= pending.send_again:
                    self._overdue(key, pending, now)

    def resend(self) -> None:
        """The connection is new: what was on the way may be lost. What its server no longer takes would end it."""
        for key, pending in list(self._pending.items()):
            pending.send_again = 0.0
            try:
                check_size(self._client, pending.subject, len(pending.frame) - pending.frame.index(b"\r\n") - 4)
            except TooLargeError as error:
                self._fail(key, pending, error)

    def _fail(self, key: str, pending: _Pending, error: BusError) -> None:
        del self._pending[key]
        if not pending.done.done():
            pending.done.set_exception(error)
            pending.done.exception()  # of several sent together the first that fails is awaited only

    def _overdue(self, key: str, pending: _Pending, now: float) -> None:
        if (pending.repeatable or not pending.sent) and now < pending.first_sent + GIVE_UP_S:
            if pending.send_again and self._wire.backed_up:
                return  # a broker that stands still would find it many times
            pending.send_again = now + ACK_TIMEOUT_S
            self._write(pending)
            return
        seconds = now - pending.first_sent
        error: type[BusError] = UnavailableError if pending.last_error else UnknownError
        words = pending.last_error or f"no acknowledgement within {seconds:.0f} s"
        self._fail(key, pending, error(pending.subject, words))

    def _write(self, pending: _Pending) -> None:
        """Without a connection it stays here; the next round sends it."""
        if self._wire.write(pending.frame):
            pending.sent = True
        else:
            pending.send_again = 0.0

    def _acknowledged(self, subject: str, _reply: str, data: bytes, headers: Headers) -> None:
        key = subject.rpartition(".")[2]
        pending = self._pending.get(key)
        if pending is None:
            return
        if headers.get("Status") == "503":
            # "No responders": JetStream is not there (yet), as after a restart of the broker.
            pending.last_error = "no stream takes it"
            pending.send_again = time.monotonic() + RETRY_S
            return
        if (ack := CONFIRMED if pending.confirms else _read(data)) is None:
            return  # somebody else listens there and has answered: the stream's own word is still to come
        if (error := ack.get("error")) is not None:
            self._fail(key, pending, _error(pending.subject, error))
            return
        del self._pending[key]
        if not pending.done.done():
            pending.done.set_result(Stored(ack["stream"], ack["seq"], ack.get("duplicate", False)))


def _read(data: bytes) -> dict[str, Any] | None:
    """A stream's acknowledgement; None for what is none."""
    try:
        ack = from_json(data)
    except ValueError:
        return None
    if not isinstance(ack, dict):
        return None
    return ack if isinstance(ack.get("error"), dict) or {"stream", "seq"} <= ack.keys() else None


def _error(subject: str, error: dict[str, object]) -> BusError:
    code, words = error.get("err_code"), str(error.get("description"))
    if code in CONFLICTS or (code == STORE_FAILED and "per subject" in words):
        return ConflictError(subject, words)
    if code == TOO_LARGE:
        return TooLargeError(subject, words)
    return UnavailableError(subject, f"{words} ({code})")
