"""Who may ask over HTTP: an entry of the bucket `llm_keys` for each client, with its keys and its limits."""

from decimal import Decimal
from typing import NamedTuple

from pydantic import Field

from schemas.base import Message, Wire


class ClientLimits(Wire):
    """What one client may do, with all its keys together. None: as much as it likes."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Of prompts and answers, whoever answers."""
    concurrent: int | None = Field(default=None, ge=1)
    """Requests that have no reply yet."""
    usd_per_day: Decimal | None = Field(default=None, ge=0)
    """By UTC; 0: only models that cost nothing."""
    capabilities: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    """Names of the policy. No other answers, as a fallback neither."""

    @property
    def takes_places(self) -> bool:
        """Whether its requests are counted from their beginning to their end."""
        return self.concurrent is not None or self.usd_per_day is not None


class ApiKey(Wire):
    """A key, of which only the digest is kept."""

    id: str
    """Stands in the key, and is no secret."""
    sha256: str
    """Of the key's whole text, in hex. It holds 256 random bits, so a slow hash would guard nothing more."""
    created_ms: int
    """Broker time, as the other."""
    ends_ms: int | None = None
    """From then on it opens nothing."""


class ApiClient(Message):
    """The value of an entry."""

    name: str
    """A token; the entry's key too."""
    note: str = ""
    limits: ClientLimits = ClientLimits()
    keys: tuple[ApiKey, ...] = ()


class Weight(NamedTuple):
    """What a request may come to."""

    tokens: int
    usd: Decimal
