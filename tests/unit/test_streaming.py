"""Pieces in whatever order they are heard come out in order, each once, of the newest attempt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.streaming import AttemptIdError, Pieces
from schemas import Chunk

KOREAN = "여관 주인이 되어 지친 모험가 일행을 맞이해 주세요."


def chunk(n: int, attempt: str = "1.1", text: str | None = None) -> Chunk:
    return Chunk(request_id="r", attempt_id=attempt, n=n, text=KOREAN[n] if text is None else text)


def put(pieces: Pieces, *chunks: Chunk) -> list[tuple[str, int]]:
    """What comes out, piece by piece."""
    out = []
    for each in chunks:
        pieces.add(each)
        out += [(ready.attempt_id, ready.n) for ready in pieces.ready()]
    return out


@given(st.permutations([*range(len(KOREAN)), *range(0, len(KOREAN), 3)]))
def test_any_order_and_doubles_give_the_same_text(order: list[int]) -> None:
    pieces = Pieces()
    assert put(pieces, *map(chunk, order)) == [("1.1", n) for n in range(len(KOREAN))]
    assert pieces.text == KOREAN
    assert pieces.missing_before is None


def test_a_gap_is_waited_for_until_it_is_skipped() -> None:
    pieces = Pieces()
    assert put(pieces, chunk(0), chunk(3), chunk(2)) == [("1.1", 0)]
    assert pieces.missing_before == (1, 1, 2)
    pieces.skip()
    assert [each.n for each in pieces.ready()] == [2, 3]
    assert put(pieces, chunk(1)) == [], "what comes too late would be out of order"


def test_another_attempt_starts_over_and_the_old_one_is_heard_no_more() -> None:
    pieces = Pieces()
    first, second, third = (tuple(chunk(n, attempt) for n in range(2)) for attempt in ("2.1", "2.2", "10.1"))
    assert put(pieces, *first, second[0], first[1], second[1], third[0], second[1]) == [
        ("2.1", 0), ("2.1", 1), ("2.2", 0), ("2.2", 1), ("10.1", 0),
    ]  # fmt: skip
    assert pieces.text == KOREAN[0]


def test_it_goes_on_behind_n_of_that_attempt_only() -> None:
    assert put(Pieces("1.1", 1), *map(chunk, range(4))) == [("1.1", 2), ("1.1", 3)]
    assert put(Pieces("1.1", 1), chunk(0, "1.2"), chunk(1, "1.2")) == [("1.2", 0), ("1.2", 1)]
    assert put(Pieces("2.1", 1), chunk(2, "1.1"), chunk(2, "2.1")) == [("2.1", 2)]


@pytest.mark.parametrize("strange", ["", "1", "1.", ".1", "1.1.1", "-1.1", "1.x", "²,1", "1." + "9" * 5000])
def test_what_is_no_attempt_id_is_refused(strange: str) -> None:
    with pytest.raises(AttemptIdError, match=r"they look like 2\.1"):
        Pieces(strange)
