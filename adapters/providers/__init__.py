"""The registry of providers: a dialect leads to the class that speaks it, imported only when one is built.

A new provider is a file in this package and a line in `DIALECTS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Final, Protocol, cast

from pydantic import SecretStr

from router.ports import Provider, Residency
from schemas.policy import Dialect, Residence


@dataclass(frozen=True, slots=True)
class Backend:
    """What a provider must know of one of its models."""

    num_ctx: int | None = None
    """The context to load it with. One value for all calls: another one would reload the model."""
    resident: bool = False
    """It never leaves memory by itself: it is always wanted there, or a scheduler decides."""
    load_ms: int = 300_000
    """The longest that bringing it into memory may take."""
    embeds: bool = False
    """It takes texts to embed, and no chats."""


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


class ResidencyFactory(Protocol):
    def of(self, setup: Setup, provider: Provider) -> Residency: ...


DIALECTS: Final[Mapping[Dialect, str]] = {
    "ollama": "adapters.providers.ollama:Ollama",
    "openai": "adapters.providers.openai:OpenAI",
    "anthropic": "adapters.providers.anthropic:Anthropic",
    "gemini": "adapters.providers.gemini:Gemini",
    "cohere": "adapters.providers.cohere:Cohere",
    "loopback": "adapters.providers.loopback:Loopback",
}

RESIDENCES: Final[Mapping[Residence, str | None]] = {
    "ollama": "adapters.providers.ollama_residency:OllamaResidency",
    "llama-server": "adapters.providers.llama_server:LlamaServer",
    "single": "adapters.providers.single:SingleModel",
    "none": None,
}


def build(dialect: Dialect, setup: Setup) -> Provider:
    """The provider that speaks `dialect`. Raises ValueError for a url or a key that cannot be used."""
    return cast("Factory", resolve_name(DIALECTS[dialect])).of(setup)


def residency(residence: Residence, setup: Setup, provider: Provider) -> Residency | None:
    """What sees and changes which models the server behind `provider` holds; None where that is no business of ours.

    Raises ValueError for a url or a key that cannot be used.
    """
    path = RESIDENCES[residence]
    return None if path is None else cast("ResidencyFactory", resolve_name(path)).of(setup, provider)
