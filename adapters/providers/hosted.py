"""What providers with an account share: a server, keys that take turns, a list of models. A dialect says the rest."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Self

from pydantic import SecretStr

from adapters.providers import Setup
from adapters.providers.http import NO_HEADERS, Upstream
from adapters.providers.keys import Keys


class Hosted:
    """One account at one server."""

    key_header: ClassVar[str] = "Authorization"
    key_prefix: ClassVar[str] = "Bearer "
    cut_off: ClassVar[str] = ""
    """What is cut off the end of the url, where some of its pages are not under it."""
    headers: ClassVar[Mapping[str, str]] = NO_HEADERS
    """Sent with every call."""
    listed_at: ClassVar[tuple[str, str, str]] = ("/models", "data", "id")
    """Where its models are listed: the path, the field that holds the list, the name's field in each."""

    def __init__(
        self, url: str | None, models: Collection[str] = (), *, keys: Sequence[SecretStr] = (),
        key_names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._models = models
        self._keys = Keys(keys, key_names, header=self.key_header, prefix=self.key_prefix)
        self._upstream = Upstream((url or "").rstrip("/").removesuffix(self.cut_off), keys, headers=self.headers)

    @classmethod
    def of(cls, setup: Setup) -> Self:
        return cls(setup.url, tuple(setup.models), keys=setup.keys, key_names=setup.key_names)

    async def probe(self) -> dict[str, str | None]:
        return await self._upstream.offers(self._models, *self.listed_at, self._keys)

    async def aclose(self) -> None:
        await self._upstream.aclose()
