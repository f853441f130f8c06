"""A connection pool that loses no connection, at whatever moment a call is cancelled.

httpcore 1.0.9 does (its issue 1093): a call cancelled after it got a new connection and before it used it leaves that
connection behind, open for ever and of no use. Here such a connection is closed as soon as the pool is looked through,
which the cancelled call itself sees to. It also forgets a connection whose call is cancelled while TLS begins, and lets
calls share one that is not there yet; here that is closed, and a connection has one call at a time.
"""

import time
from typing import Final, cast

import httpcore
import httpx

from adapters.providers.http1 import Http1Connection
from adapters.providers.http2 import Http2Connection

SWEEP_S: Final = 1.0
"""So often all idle connections are looked at, whether their servers have left; else only the one to be used."""


class Transport(httpx.AsyncHTTPTransport):
    """httpx's own, with the pool below; HTTP/2 where a server offers it over TLS."""

    def __init__(self, limits: httpx.Limits) -> None:
        super().__init__(verify=(tls := httpx.create_ssl_context(trust_env=False)), trust_env=False)
        self._pool = _Pool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
        )
        tls.set_alpn_protocols(["h2", "http/1.1"])


class _Connection(httpcore.AsyncHTTPConnection):
    taken = False
    """A call has it, though it may not have begun to use it."""

    def is_available(self) -> bool:
        return not self.taken and self._connection is not None and self._connection.is_available()

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        kept = self._connection is not None
        if self._connection is None:
            try:
                stream = await self._connect(request)
            except BaseException:
                self._connect_failed = True
                raise
            tls = stream.get_extra_info("ssl_object")
            http2 = tls is not None and tls.selected_alpn_protocol() == "h2"
            kind = Http2Connection if http2 else Http1Connection
            self._connection = kind(self._origin, stream, self._keepalive_expiry)
        try:
            return await self._connection.handle_async_request(request)
        except httpcore.RemoteProtocolError:
            if not kept:
                raise
            # A server may close a connection in the moment in which it is used again, and has not seen the call then.
            # One that resets it has, perhaps: that is a failure.
            await self.aclose()
            raise httpcore.ConnectionNotAvailable from None

    async def _connect(self, request: httpcore.Request) -> httpcore.AsyncNetworkStream:
        host, timeout_s = self._origin.host.decode("ascii"), request.extensions["timeout"]["connect"]
        stream = await self._network_backend.connect_tcp(host, self._origin.port, timeout_s)
        if self._ssl_context is None or self._origin.scheme != b"https":
            return stream
        try:
            return await stream.start_tls(self._ssl_context, host, timeout_s)
        except BaseException:
            await stream.aclose()
            raise


class _Pool(httpcore.AsyncConnectionPool):
    _swept_s = 0.0

    def create_connection(self, origin: httpcore.Origin) -> _Connection:
        return _Connection(origin, self._ssl_context, self._keepalive_expiry)

    def _assign_requests_to_connections(self) -> list[httpcore.AsyncConnectionInterface]:
        """In one look at each, where httpcore's own looks at all of them for each, and asks the system about each."""
        owned = {id(request.connection) for request in self._requests}
        kept: list[_Connection] = []
        closing: list[httpcore.AsyncConnectionInterface] = []
        idle = 0
        sweeping = (now_s := time.monotonic()) > self._swept_s + SWEEP_S
        self._swept_s = now_s if sweeping else self._swept_s
        for connection in cast("list[_Connection]", self._connections):
            connection.taken = id(connection) in owned
            if connection.is_closed():
                continue
            if not connection.taken:
                late = sweeping and connection.has_expired()
                if late or not connection.is_idle() or idle >= self._max_keepalive_connections:
                    closing.append(connection)
                    continue
                idle += 1
            kept.append(connection)
        for request in self._requests:
            if request.is_queued():
                request.assign_to_connection(self._chosen(kept, closing, request.request.url.origin))
        self._connections = list[httpcore.AsyncConnectionInterface](kept)
        return closing

    def _chosen(
        self, kept: list[_Connection], closing: list[httpcore.AsyncConnectionInterface], origin: httpcore.Origin
    ) -> _Connection:
        """One that is kept and still good, or a new one; taken."""
        for connection in tuple(kept):
            if not connection.is_available() or not connection.can_handle_request(origin):
                continue
            if not connection.has_expired():
                connection.taken = True
                return connection
            kept.remove(connection)
            closing.append(connection)
        kept.append(connection := self.create_connection(origin))
        connection.taken = True
        return connection
