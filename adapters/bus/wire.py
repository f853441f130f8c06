"""One message as bytes on the connection: a publish with many headers at a tenth of the library's cost.

nats-py builds and checks headers one by one and wakes a task for every write. The private names of its client that are
used here, its transport and what it has pending, are held to what they must do by `tests/contract/test_wire.py`.
"""

import asyncio
from collections.abc import Mapping

from nats.aio.client import Client

from router.errors import TooLargeError

LATER_S = 0.002
"""What nobody waits for may be held back so long."""
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
    """What goes out of one connection, in few writes: each of them costs more than most of what is said in it.

    The frames of one turn of the loop go together, right after what was read in it, else at the start of the next.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._frames: list[bytes] = []
        self._soon: asyncio.Handle | None = None
        self._may_wait = False
        """Something will be sent by a timer at the latest."""

    def write(self, ready: bytes) -> bool:
        """False when there is no connection, and so nothing was taken."""
        if not self._client.is_connected:
            return False
        self._frames.append(ready)
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self.flush)
        return True

    def write_later(self, ready: bytes) -> bool:
        """The same, in no hurry: with what goes out next, or after `LATER_S`."""
        if not self._client.is_connected:
            return False
        self._frames.append(ready)
        if not self._may_wait:
            self._may_wait = True
            asyncio.get_running_loop().call_later(LATER_S, self._waited)
        return True

    @property
    def backed_up(self) -> bool:
        """The broker does not read: what was written has not left this process."""
        return self._writer.transport.get_write_buffer_size() > 0

    @property
    def _writer(self) -> asyncio.StreamWriter:
        writer: asyncio.StreamWriter = self._client._transport._io_writer  # type: ignore[union-attr]  # noqa: SLF001
        return writer

    def _waited(self) -> None:
        self._may_wait = False
        self.flush()

    def turn_over(self) -> None:
        """Send what is there if any of it is in a hurry."""
        if self._soon is not None:
            self.flush()

    def flush(self) -> None:
        """Send what is there; what a connection that has just ended would get is lost, as what it got last may be."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        frames, self._frames = self._frames, []
        if frames and self._client.is_connected and not self._writer.is_closing():
            self._client._transport.writelines(self._of_the_library() + frames)  # type: ignore[union-attr]  # noqa: SLF001

    def _of_the_library(self) -> list[bytes]:
        """It goes first: a subscription must stand before what it is to hear is asked for."""
        client = self._client
        pending, client._pending, client._pending_data_size = client._pending, [], 0  # noqa: SLF001
        return pending
