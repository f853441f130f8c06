"""A connection pool that loses no connection, at whatever moment a call is cancelled.

httpcore 1.0.9 does (its issue 1093): a call cancelled after it got a new connection and before it used it leaves that
connection behind, open for ever and of no use. Here such a connection is closed as soon as the pool is looked through,
which the cancelled call itself sees to.
"""

import httpcore
import httpx


class Transport(httpx.AsyncHTTPTransport):
    """httpx's own, with the pool below."""

    def __init__(self, limits: httpx.Limits) -> None:
        super().__init__(verify=(tls := httpx.create_ssl_context(trust_env=False)), trust_env=False)
        self._pool = _Pool(
            ssl_context=tls,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
        )


class _Pool(httpcore.AsyncConnectionPool):
    def _assign_requests_to_connections(self) -> list[httpcore.AsyncConnectionInterface]:
        owned = {id(request.connection) for request in self._requests}
        orphans = [one for one in self._connections if id(one) not in owned and not one.is_idle()]
        for orphan in orphans:
            self._connections.remove(orphan)
        return orphans + super()._assign_requests_to_connections()
