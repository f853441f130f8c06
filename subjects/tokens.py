"""One rule for what may stand between two dots: `[A-Za-z0-9_-]{1,64}`."""

import re
from typing import TypeGuard

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


class InvalidTokenError(ValueError):
    """A name that must not reach a subject; carries what it was meant for and the name itself."""

    def __init__(self, what: str, value: object) -> None:
        self.what = what
        self.value = value
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
        super().__init__(f"{what} must be 1 to 64 of A-Z a-z 0-9 _ -, not {shown}")


def is_token(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _TOKEN.match(value) is not None


def token(what: str, value: object) -> str:
    """The value itself, or InvalidTokenError naming `what`."""
    if not is_token(value):
        raise InvalidTokenError(what, value)
    return value
