"""What a server holds that was started with one model and keeps it: it can be looked at, not changed."""

from typing import Final, Self

from adapters.providers import Backend, Setup
from adapters.providers.residency import one_token, until, unusable
from router.errors import AttemptError
from router.ports import Held, Provider
from schemas.failure import FailureKind

UNKNOWN: Final = Backend()
NOT_YET: Final = frozenset({FailureKind.CONNECTION, FailureKind.SERVER_ERROR, FailureKind.SILENCE})
"""How a server speaks, or does not, that is still being started."""


class SingleModel:
    """The memory of one server that holds one model."""

    fixed = True

    def __init__(self, setup: Setup, provider: Provider) -> None:
        self._models = setup.models
        self._provider = provider

    @classmethod
    def of(cls, setup: Setup, provider: Provider) -> Self:
        return cls(setup, provider)

    async def models(self) -> dict[str, Held]:
        return {name: Held() for name, why_not in (await self._provider.probe()).items() if why_not is None}

    async def load(self, name: str) -> None:
        """Waits for a server that is being started."""
        load_ms = self._models.get(name, UNKNOWN).load_ms
        last = "it was not asked"

        async def there() -> bool:
            nonlocal last
            try:
                found = await self._provider.probe()
            except AttemptError as error:
                if error.failure.kind not in NOT_YET:
                    raise
                last = error.failure.message
                return False
            if (why_not := found.get(name, f"nobody offers {name}")) is not None:
                raise unusable(why_not)
            return True

        try:
            await until(there, load_ms, "")
        except AttemptError as error:
            if error.failure.kind is not FailureKind.SILENCE:
                raise
            raise AttemptError.of(FailureKind.CONNECTION, f"{name} is not served after {load_ms} ms: {last}") from None

    async def unload(self, name: str) -> None:
        raise unusable(f"{name} is what its server was started with: stop that server to have its memory back")

    async def generates(self, name: str, within_ms: int) -> None:
        await one_token(self._provider, name, within_ms, embeds=self._models.get(name, UNKNOWN).embeds)

    async def aclose(self) -> None:
        """Nothing is open."""
