"""Where providers' keys come from: environment variables, and files that such variables name. Never from a policy.

For each name of a provider's `keys` in the policy, `<NAME>` holds keys, separated by commas or blanks, and
`<NAME>_FILE` the path of a file with one key on a line. All that are found are used, in turn.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from router.errors import LlmbusError

FILE = "_FILE"
SEPARATORS = re.compile(r"[,\s]+")
COMMENT = re.compile(r"(?:^|\s)#.*")


class KeyFileError(LlmbusError):
    """A file of keys that cannot be used: names the variable and the path, never what stands in it."""

    def __init__(self, variable: str, path: str, what: str) -> None:
        super().__init__(
            f"{variable} names {path}, which {what}; put one key on a line into it, readable by this process, "
            f"or unset {variable}"
        )


class Source(NamedTuple):
    """A variable that is set, and the keys that it leads to."""

    variable: str
    keys: tuple[SecretStr, ...]


def sources(names: Iterable[str], environ: Mapping[str, str]) -> tuple[Source, ...]:
    """Every variable of `names` that is set to something. Raises KeyFileError."""
    found = []
    for name in names:
        if keys := _secrets(SEPARATORS.split(environ.get(name, ""))):
            found.append(Source(name, keys))
        if path := environ.get(name + FILE):
            found.append(Source(name + FILE, _of_file(name + FILE, path)))
    return tuple(found)


def keys(names: Iterable[str], environ: Mapping[str, str]) -> tuple[SecretStr, ...]:
    """All keys that `names` lead to, each once. Raises KeyFileError."""
    every = (key.get_secret_value() for source in sources(names, environ) for key in source.keys)
    return _secrets(dict.fromkeys(every))


def _of_file(variable: str, path: str) -> tuple[SecretStr, ...]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise KeyFileError(variable, path, f"cannot be read ({error.strerror or type(error).__name__})") from None
    except ValueError:  # it would show the bytes
        raise KeyFileError(variable, path, "is no text") from None
    lines = [COMMENT.sub("", line).strip() for line in text.splitlines()]
    if any(SEPARATORS.search(line) for line in lines):
        raise KeyFileError(variable, path, "has a line with more than one key")
    if found := _secrets(lines):
        return found
    raise KeyFileError(variable, path, "holds no key")


def _secrets(texts: Iterable[str]) -> tuple[SecretStr, ...]:
    return tuple(SecretStr(text) for text in texts if text)
