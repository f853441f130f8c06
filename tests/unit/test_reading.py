"""The server's bytes taken apart: the same whatever pieces they come in."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from adapters.bus.connection import BusClient
from adapters.bus.reading import Reading
from router.ports import Headers

Heard = tuple[str, str, bytes, dict[str, str]]
OURS, OTHERS = 7, 12


class Ears:
    """What was heard of `OURS`, what was left to the library, and how often a turn was over."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.left = b""
        self.turns = 0
        self.reading = Reading({OURS: self.hear}, self.leave, lambda _block: {"odd": "block"}, self.turn_over)

    def hear(self, subject: str, reply: str, data: bytes, headers: Headers) -> None:
        self.heard.append((subject, reply, data, dict(headers)))
        if data == b"fail":
            raise ValueError("told to")

    def leave(self, data: bytes) -> None:
        self.left += data

    def turn_over(self) -> None:
        self.turns += 1


def msg(sid: int, data: bytes, *, subject: str = "a.b", reply: str = "", block: bytes = b"") -> bytes:
    words = [subject, str(sid), *([reply] if reply else []), *([str(len(block))] if block else [])]
    head = f"{'HMSG' if block else 'MSG'} {' '.join(words)} {len(block) + len(data)}\r\n"
    return head.encode() + block + data + b"\r\n"


BLOCK = b"NATS/1.0\r\nLlm-Client: npc-ai\r\nLlm-Error: \xec\x98\xa4\xeb\xa5\x98\r\n\r\n"
NAMED = {"Llm-Client": "npc-ai", "Llm-Error": "오류"}
STREAM: list[tuple[bytes, Heard | None]] = [
    (b"INFO {}\r\n", None),
    (msg(OURS, b"one"), ("a.b", "", b"one", {})),
    (b"PING\r\n", None),
    (msg(OURS, b"", reply="_INBOX.x.1"), ("a.b", "_INBOX.x.1", b"", {})),
    (msg(OTHERS, b"MSG a.b 7 3\r\nno!\r\n"), None),
    (msg(OURS, "본문".encode(), block=BLOCK), ("a.b", "", "본문".encode(), NAMED)),
    (msg(OTHERS, b"x" * 300, reply="r", block=BLOCK), None),
    (msg(OURS, b"\r\n\r\n", reply="r", block=BLOCK), ("a.b", "r", b"\r\n\r\n", NAMED)),
    (msg(OURS, b"", block=b"NATS/1.0 503\r\n\r\n"), ("a.b", "", b"", {"odd": "block"})),
    (b"-ERR 'Permissions Violation'\r\n", None),
    (b"PONG\r\n", None),
]
BYTES = b"".join(frame for frame, _ in STREAM)
HEARD = [heard for _, heard in STREAM if heard is not None]
LEFT = b"".join(frame for frame, heard in STREAM if heard is None)


@given(st.lists(st.integers(0, len(BYTES)), max_size=40))
def test_whatever_pieces_it_comes_in_the_same_is_heard_and_left(cuts: list[int]) -> None:
    ears = Ears()
    for start, end in pairwise([0, *sorted(cuts), len(BYTES)]):
        ears.reading.feed(BYTES[start:end])
    assert (ears.heard, ears.left) == (HEARD, LEFT)


def test_byte_by_byte() -> None:
    ears = Ears()
    for byte in BYTES:
        ears.reading.feed(bytes([byte]))
    assert (ears.heard, ears.left) == (HEARD, LEFT)


@pytest.mark.parametrize("piece_bytes", [1 << 16, 1 << 18])
def test_what_is_left_to_the_library_is_left_whole_and_a_large_message_is_not_searched_again(piece_bytes: int) -> None:
    ears = Ears()
    data = msg(OURS, b"\r\n" * (4 << 20), block=BLOCK)
    for start in range(0, len(data), piece_bytes):
        ears.reading.feed(data[start : start + piece_bytes])
    assert [len(heard[2]) for heard in ears.heard] == [8 << 20]


def test_the_turn_is_over_after_every_read_that_brought_something() -> None:
    ears = Ears()
    ears.reading.feed(msg(OURS, b"one") + msg(OURS, b"two"))
    assert ears.turns == 1


def test_a_handler_that_fails_does_not_end_the_reading() -> None:
    ears = Ears()
    with capture_logs() as logs:
        ears.reading.feed(msg(OURS, b"fail") + msg(OURS, b"next"))
    assert [heard[2] for heard in ears.heard] == [b"fail", b"next"]
    assert [entry["event"] for entry in logs] == ["bus.handler_failed"]


PIECES = [b"NATS/1.0", b" ", b"\r\n", b"503", b"a", b":", b"\xff", "오".encode(), b"\x00", b"\r", b"\n", b"\t"]


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_no_status_ends_the_reading(pieces: list[bytes]) -> None:
    BusClient()._odd_headers(b"NATS/1.0 " + b"".join(pieces))


def test_a_subject_that_is_not_utf8_is_heard() -> None:
    ears = Ears()
    ears.reading.feed(b"MSG llm.req.\xff 7 2\r\nhi\r\n")
    assert ears.heard == [("llm.req.�", "", b"hi", {})]
