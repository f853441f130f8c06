"""A TLS server on 127.0.0.1 that offers HTTP/2 or does not, and does with each call what a script says."""

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HEAD = [(":status", "200"), ("content-type", "text/event-stream")]


class Exchange:
    """One call on a stream of its own."""

    def __init__(self, connection: "_Connection", stream: int, headers: dict[str, str]) -> None:
        self.connection, self.stream, self.headers = connection, stream, headers
        self.body = b""
        self.stopped = asyncio.Event()
        """The client reset the stream."""

    async def send(self, data: bytes, *, end: bool = False, head: bool = True) -> None:
        if head:
            self.connection.h2.send_headers(self.stream, HEAD)
        for at in range(0, len(data), 16_000):
            self.connection.h2.send_data(self.stream, data[at : at + 16_000])
        if end:
            self.connection.h2.end_stream(self.stream)
        await self.connection.flush()

    async def goodbye(self, last_stream: int) -> None:
        """Announce that this connection will close: a GOAWAY as servers send it that end what they have begun."""
        data = last_stream.to_bytes(4, "big") + bytes(4)
        self.connection.writer.write(len(data).to_bytes(3, "big") + b"\x07\x00" + bytes(4) + data)
        await self.connection.writer.drain()


Script = Callable[[Exchange], Awaitable[None]]


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.exchanges: dict[int, Exchange] = {}

    async def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()


class Http2Upstream:
    """Serves each call by `script`, which may be changed at any time."""

    def __init__(self, tls: ssl.SSLContext, script: Script) -> None:
        self._tls, self.script = tls, script
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()

    async def all_gone(self) -> None:
        """Wait until no connection is open any more."""
        await asyncio.gather(*self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        connection = _Connection(reader, writer)
        connection.h2.initiate_connection()
        try:
            async with asyncio.TaskGroup() as group:
                await connection.flush()
                while data := await reader.read(65_536):
                    for event in connection.h2.receive_data(data):
                        self._take(connection, event, group)
                    await connection.flush()
                raise ConnectionResetError
        except* (OSError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            self._open.discard(task)
            writer.transport.abort()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def _take(self, connection: _Connection, event: h2.events.Event, group: asyncio.TaskGroup) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=int(stream)):
                headers = {str(name): str(value) for name, value in event.headers or ()}
                connection.exchanges[stream] = exchange = Exchange(connection, stream, headers)
                self.exchanges.append(exchange)
            case h2.events.DataReceived(stream_id=int(stream), data=bytes(data)):
                connection.exchanges[stream].body += data
                connection.h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            case h2.events.StreamEnded(stream_id=int(stream)):
                group.create_task(self._answer(connection.exchanges[stream]))
            case h2.events.StreamReset(stream_id=int(stream)):
                connection.exchanges[stream].stopped.set()

    async def _answer(self, exchange: Exchange) -> None:
        await self.script(exchange)


def tls_context(directory: Path, alpn: list[str], patch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server speaks with; the certificate, made here, is trusted by providers until the test is over."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = directory / "server.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    server.set_alpn_protocols(alpn)
    patch.setattr(httpx, "create_ssl_context", lambda **_: ssl.create_default_context(cafile=str(pem)))
    return server
