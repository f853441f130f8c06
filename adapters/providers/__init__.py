"""The registry of providers: a dialect leads to the class that speaks it, imported only when one is built.

A new provider is a file in this package and a line in `DIALECTS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Final, Protocol, cast

from pydantic import SecretStr

from router.ports import Provider
from schemas.policy import Dialect


@dataclass(frozen=True, slots=True)
class Backend:
    """What a provider must know of one of its models."""

    num_ctx: int | None = None
    """The context to load it with. One value for all calls: another one would reload the model."""
    resident: bool = False
    """Kept in memory always."""


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a provider on a node is made from."""

    url: str | None = None
    models: Mapping[str, Backend] = field(default_factory=dict)
    """By the provider's own names."""
    keys: tuple[SecretStr, ...] = ()
    key_names: tuple[str, ...] = ()
    """The environment variables that may hold a key; empty when none is needed. For remedies."""
    allow_crash: bool = False
    """A loopback may be told to take its process down."""


class Factory(Protocol):
    """The side of a provider's class that the registry sees."""

    def of(self, setup: Setup) -> Provider: ...


DIALECTS: Final[Mapping[Dialect, str]] = {
    "ollama": "adapters.providers.ollama:Ollama",
    "openai": "adapters.providers.openai:OpenAI",
    "gemini": "adapters.providers.gemini:Gemini",
    "loopback": "adapters.providers.loopback:Loopback",
}


def build(dialect: Dialect, setup: Setup) -> Provider:
    """The provider that speaks `dialect`. Raises ValueError for a url or a key that cannot be used."""
    return cast("Factory", resolve_name(DIALECTS[dialect])).of(setup)
