"""How much JSON a body is, is told without reading it, and what strings hold counts for nothing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.values import has_more_values

AWKWARD = st.text(alphabet='",:[]{}\\\n가a', max_size=8)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | AWKWARD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(AWKWARD, inner, max_size=4),
    max_leaves=30,
)


def values_in(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 1
    return 1 + (sum(map(values_in, value.values() if isinstance(value, dict) else value)) if value else 1)


@given(ANYTHING, st.booleans(), st.integers(-2, 2))
def test_values_are_counted_as_a_reader_would_count_them(value: Any, ascii_only: bool, off: int) -> None:
    most = max(1, values_in(value) + off)
    assert has_more_values(json.dumps(value, ensure_ascii=ascii_only).encode(), most) == (values_in(value) > most)


@pytest.mark.parametrize("text", ['{"a": [1, 2]}, ', '"', "\\", '\\"', '["\\\\"], ', "항구, {[", "[[[,,,"], ids=ascii)
def test_what_a_string_holds_is_no_value(text: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": text * 10_000}]}).encode()
    assert not has_more_values(body, 10)
