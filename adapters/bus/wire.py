"""One message as bytes on the connection: a publish with many headers at a third of the library's cost.

nats-py builds and checks headers one by one and has no call for a frame that is ready; the three names of its client
used here are private, so `tests/contract/test_wire.py` holds what they must do.
"""

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


async def write(client: Client, ready: bytes) -> None:
    """Put a frame behind what is to be sent. While the connection is away it waits, as any publish does."""
    await client._send_command(ready)  # noqa: SLF001
    queue = client._flush_queue  # noqa: SLF001
    if queue is not None and queue.empty():
        await client._flush_pending()  # noqa: SLF001
