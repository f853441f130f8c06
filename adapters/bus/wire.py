"""One message as bytes on the connection: a publish with many headers at a tenth of the library's cost.

nats-py builds and checks headers one by one and wakes a task for every write. The one private name of its client that
is used here, its transport, is held to what it must do by `tests/contract/test_wire.py`.
"""

import asyncio
from collections.abc import Mapping

from nats.aio.client import Client

from router.errors import TooLargeError

_LINES = str.maketrans({"\r": " ", "\n": " "})


def header_block(headers: Mapping[str, str]) -> bytes:
    """The headers as they travel. A value cannot start another line: its line breaks become spaces."""
    text = "\r\n".join([f"{name}: {value}" for name, value in headers.items()])
    if text.count("\n") != len(headers) - 1 or text.count("\r") != len(headers) - 1:
        text = "\r\n".join([f"{name}: {value.translate(_LINES)}" for name, value in headers.items()])
    return f"NATS/1.0\r\n{text}\r\n\r\n".encode()


def check_size(client: Client, subject: str, size_bytes: int) -> None:
    """Headers count too; over its limit the server would close the connection. Raises TooLargeError."""
    if size_bytes > client.max_payload:
        raise TooLargeError(subject, f"{size_bytes} bytes are more than the broker's {client.max_payload}")


def frame(subject: str, reply: str, block: bytes, data: bytes) -> bytes:
    """A publish; the reply subject and the headers may be empty."""
    if not block:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(data), data)
    size = len(block)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), size, size + len(data), block, data)


class Wire:
    """What goes out of one connection: all frames of one turn of the loop in one write, at the start of the next."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._frames: list[bytes] = []

    def write(self, ready: bytes) -> bool:
        """False when there is no connection, and so nothing was taken."""
        if not self._client.is_connected:
            return False
        if not self._frames:
            asyncio.get_running_loop().call_soon(self._flush)
        self._frames.append(ready)
        return True

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if self._client.is_connected:
            self._client._transport.writelines(frames)  # type: ignore[union-attr]  # noqa: SLF001
