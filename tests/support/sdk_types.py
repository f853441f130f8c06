"""Judges values by the vendors' own types."""

from typing import Any

from pydantic import TypeAdapter


def check(types: TypeAdapter[Any], value: Any) -> None:
    """Raises pydantic.ValidationError, for what is deep within too: what is typed as Iterable is only checked once it
    is iterated."""
    _exhaust(types.validate_python(value))


def _exhaust(value: Any) -> None:
    if isinstance(value, dict):
        for each in value.values():
            _exhaust(each)
    elif hasattr(value, "__iter__") and not isinstance(value, str | bytes):
        for each in value:
            _exhaust(each)
