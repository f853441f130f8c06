"""The `Prefer` header (RFC 7240), as far as it means something here."""

from typing import Final

MAX_WAIT_S: Final = 60.0


def preferences(header: str) -> dict[str, str]:
    """By name in lower case; of one that is given twice the first counts. Parameters are of no use here."""
    found: dict[str, str] = {}
    for each in header.split(","):
        name, _, value = each.partition(";")[0].partition("=")
        if name := name.strip().lower():
            found.setdefault(name, value.strip().strip('"').strip())
    return found


def respond_async(header: str) -> float | None:
    """How many seconds its caller would wait for the answer before a 202; None: to the end."""
    wished = preferences(header)
    if "respond-async" not in wished:
        return None
    wait = wished.get("wait", "")
    return min(float(wait), MAX_WAIT_S) if wait.isascii() and wait.isdigit() and len(wait) < 10 else 0.0
