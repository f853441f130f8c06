"""HTTP/2 for answers that take minutes: one call at a time on a connection, which the pool sees to, and a stop that the
server hears of.

Several calls on one connection would wait for each other's lost packets, and httpcore 1.0.9 would let one that is
cancelled garble the others, queue them behind limits it learns too late, and not tell the server to stop. Nor would it
let an answer end whose server has announced that it will close the connection afterwards.
"""

from contextlib import suppress
from typing import Final

import httpcore
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event
from h2.exceptions import ProtocolError
from hyperframe.frame import Frame, GoAwayFrame

RESET_S: Final = 0.1
"""What telling a server to stop may take, before the connection is closed under it."""


class _State(H2Connection):
    leaving = False
    """The server takes no further call here, and ends the one it has."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        calling = self.open_outbound_streams and frame.last_stream_id >= self.highest_outbound_stream_id
        if calling and frame.error_code == ErrorCodes.NO_ERROR:
            self.leaving = True
            return [], []
        return super()._receive_goaway_frame(frame)


class Http2Connection(httpcore.AsyncHTTP2Connection):
    """httpcore's own, that may be stopped and left."""

    def __init__(
        self, origin: httpcore.Origin, stream: httpcore.AsyncNetworkStream, keepalive_expiry: float | None
    ) -> None:
        super().__init__(origin, stream, keepalive_expiry)
        self._h2_state: _State = _State(config=self.CONFIG)

    def is_idle(self) -> bool:
        """Between two calls. Before the first it is not, or it would stay for ever when that is cancelled."""
        return super().is_idle() and self._request_count > 0

    def has_expired(self) -> bool:
        """What a server says between two calls is most likely that it leaves."""
        said_something = self.is_idle() and bool(self._network_stream.get_extra_info("is_readable"))
        return said_something or super().has_expired()

    async def _receive_events(self, request: httpcore.Request, stream_id: int | None = None) -> None:
        try:
            await super()._receive_events(request, stream_id)
        except ProtocolError as error:  # which httpcore lets pass within a body
            raise httpcore.RemoteProtocolError(str(error)) from None

    async def _response_closed(self, stream_id: int) -> None:
        stream = self._h2_state.streams.get(stream_id)
        whole = stream is None or stream.closed
        try:
            if not whole:
                await self._reset(stream_id)
        finally:
            await super()._response_closed(stream_id)
            if not whole or self._h2_state.leaving:
                await self.aclose()

    async def _reset(self, stream_id: int) -> None:
        with suppress(ProtocolError, httpcore.NetworkError, httpcore.TimeoutException):
            self._h2_state.reset_stream(stream_id, ErrorCodes.CANCEL)
            await self._network_stream.write(self._h2_state.data_to_send(), RESET_S)
