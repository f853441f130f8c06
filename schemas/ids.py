"""Message ids for the broker's deduplication: made by us from what a message is, never a client's own string."""

import hashlib


def message_id(kind: str, client: str, rid: str, *more: object) -> str:
    """The same for the same thing, however often and by whomever it is published."""
    parts = "\n".join((kind, client, rid, *map(str, more)))
    return hashlib.sha256(parts.encode()).hexdigest()[:32]
