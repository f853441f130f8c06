"""Looks into compiled patterns: which of their repetitions could make a search superlinear."""

import re
from importlib import import_module
from typing import Any

_parser: Any = import_module("re._parser")
_BACKTRACKING = {"MAX_REPEAT", "MIN_REPEAT"}


def unbounded(pattern: object) -> list[str]:
    """The repetitions that have no upper bound and give back what they took."""
    assert isinstance(pattern, re.Pattern)
    return list(_walk(_parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)))


def _walk(node: Any) -> list[str]:
    found = []
    if isinstance(node, tuple) and len(node) == 2 and str(node[0]) in _BACKTRACKING and node[1][1] == _parser.MAXREPEAT:
        found.append(str(node))
    if isinstance(node, list | tuple | _parser.SubPattern):
        for child in node:
            found += _walk(child)
    return found
