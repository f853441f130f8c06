"""How the `Prefer` header is read."""

import pytest

from adapters.edge.prefer import preferences, respond_async


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("respond-async", 0.0),
        ("Respond-Async , WAIT = 10", 10.0),
        ('wait="7";x=y, respond-async', 7.0),
        ("respond-async, wait=100000", 60.0),
        ("respond-async, wait=-1", 0.0),
        ("respond-async, wait=soon", 0.0),
        ("wait=10", None),
        ("respond-asynchronously", None),
        ("return=minimal", None),
        ("", None),
    ],
)
def test_a_preference_is_read_as_the_standard_writes_it(header: str, wait_s: float | None) -> None:
    assert respond_async(header) == wait_s


def test_of_a_preference_that_is_given_twice_the_first_counts() -> None:
    assert preferences("wait=1, wait=2") == {"wait": "1"}
