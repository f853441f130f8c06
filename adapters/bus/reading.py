"""What the server sends, taken apart in the very turn of the loop in which it comes.

nats-py wakes a task for what was read and hands it over through a queue to another. Here messages of direct
subscriptions go to their handlers at once; all else is left to the library, in whole lines and messages.
"""

import re
from collections.abc import Callable, Mapping

import structlog

from router.ports import NO_HEADERS, Headers

log = structlog.get_logger(__name__)

Direct = Callable[[str, str, bytes, Headers], None]
"""Called with subject, reply subject, data and headers."""

_CRLF = b"\r\n"
_NAME = re.compile(r"[!-9;-~]+\Z")


class Reading:
    """The bytes of one connection, in their order.

    `handlers` by subscription id must not block; what they raise is logged. `leave` gets what is the library's, and
    `odd_headers` header blocks that are not as this project writes them. `turn_over` is called after every read.
    """

    def __init__(
        self, handlers: Mapping[int, Direct], leave: Callable[[bytes], None],
        odd_headers: Callable[[bytes], Headers | None], turn_over: Callable[[], None],
    ) -> None:  # fmt: skip
        self._handlers = handlers
        self._leave = leave
        self._odd_headers = odd_headers
        self._turn_over = turn_over
        self._kept = bytearray()
        """The beginning of what has not come whole."""
        self._whole_bytes = 0
        """How long what is kept will be, once that is known."""

    def feed(self, data: bytes) -> None:
        if self._kept:
            self._kept += data
            if len(self._kept) < self._whole_bytes:
                return
            data = bytes(self._kept)
            self._kept.clear()
        self._whole_bytes = 0
        at = 0
        while (line_end := data.find(_CRLF, at)) >= 0:
            words = data[at:line_end].split(b" ")
            start = line_end + 2
            if words[0] in (b"MSG", b"HMSG"):
                end = start + int(words[-1]) + 2
                if end > len(data):
                    self._whole_bytes = end - at
                    break
                if handler := self._handlers.get(int(words[2])):
                    self._hand_over(handler, words, data, start, end - 2)
                else:
                    self._leave(data[at:end])
                at = end
            else:
                self._leave(data[at:start])
                at = start
        if at < len(data):
            self._kept += data[at:]
        self._turn_over()

    def _hand_over(self, handler: Direct, words: list[bytes], data: bytes, start: int, end: int) -> None:
        """`words`: MSG subject sid [reply] size, or HMSG subject sid [reply] header-size size."""
        headers = NO_HEADERS
        sizes = 1
        if words[0] == b"HMSG":
            sizes = 2
            block = data[start : start + int(words[-2])]
            headers = own_headers(block) or self._odd_headers(block) or NO_HEADERS
            start += len(block)
        reply = words[3].decode(errors="replace") if len(words) - sizes == 4 else ""
        subject = words[1].decode(errors="replace")
        try:
            handler(subject, reply, data[start:end], headers)
        except Exception:
            log.exception("bus.handler_failed", subject=subject)


def own_headers(block: bytes) -> Headers | None:
    """A block as this project writes them, in a fifth of the library's time; None for any other."""
    lines = block.decode(errors="replace").split("\r\n")
    if len(lines) < 3 or lines[0] != "NATS/1.0" or lines[-2:] != ["", ""]:
        return None
    parsed = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.match(name):
            return None
        parsed[name] = value.strip()
    return parsed
