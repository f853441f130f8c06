"""Answers as server-sent events, or as one JSON object from a server that does not stream."""

from abc import abstractmethod
from typing import Final, Generic, TypeVar

from pydantic import ValidationError

from adapters.providers.failures import malformed
from adapters.providers.reading import LINE_BYTES, Reading
from router.ports import Progress
from schemas.base import Wire

E = TypeVar("E", bound=Wire)

DONE: Final = b"[DONE]"


class EventReading(Reading, Generic[E]):
    """Feeds `take` with each event's JSON as an `event` model. Names of events are not read: every dialect's data says
    what it is."""

    def __init__(self, progress: Progress, event: type[E]) -> None:
        super().__init__(progress)
        self._event = event
        self.pending = b""
        """Data of an event that is not whole yet: what ends with it was cut off."""
        self._unstreamed: list[bytes] | None = None
        self._size = 0
        self._started = False

    @abstractmethod
    def take(self, event: E) -> None:
        """One event; sets `complete` on the dialect's end mark. Raises AttemptError."""

    def done(self) -> None:
        """`[DONE]` was read, in the dialects that have it."""

    def line(self, line: bytes) -> None:
        if not self._started and line.strip():
            self._started = True
            line = line.removeprefix(b"\xef\xbb\xbf")
            if line.lstrip().startswith(b"<"):
                raise malformed("a web page came in place of an answer: is the url right?", line)
            self._unstreamed = [] if line.lstrip().startswith(b"{") else None
        if self._unstreamed is not None:
            self._collect(line)
        elif line.startswith(b"data:"):
            self._data(line[5:].strip())
        elif not line and self.pending:
            raise malformed("an event is not the JSON of this dialect", self.pending)

    def whole_body(self) -> E | None:
        """The answer of a server that did not stream; None when it did. Raises AttemptError."""
        if self._unstreamed is None:
            return None
        body = b"\n".join(self._unstreamed)
        try:
            return self._event.decode(body)
        except ValidationError:
            raise malformed("the answer is not of this dialect", body) from None

    def _collect(self, line: bytes) -> None:
        self._size += len(line)
        if self._unstreamed is None or self._size > LINE_BYTES:
            raise malformed(f"the answer is larger than {LINE_BYTES >> 20} MB", line)
        self._unstreamed.append(line)

    def _data(self, data: bytes) -> None:
        if data == DONE and not self.pending:
            self.done()
            return
        self.pending += data
        if len(self.pending) > LINE_BYTES:
            raise malformed(f"an event is larger than {LINE_BYTES >> 20} MB", data)
        # An event may take several lines, and some servers leave out the blank line between two: it is whole as soon
        # as it is JSON.
        if not data.endswith(b"}"):
            return
        try:
            event = self._event.decode(self.pending)
        except ValidationError as error:
            if any(problem["type"] != "json_invalid" for problem in error.errors(include_input=False)):
                raise malformed("an event is not of this dialect", self.pending) from None
            return
        self.pending = b""
        self.take(event)
