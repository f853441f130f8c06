"""What an Ollama server holds in memory: `/api/ps`, and empty prompts that load and unload.

It throws out what is idle by itself when a load needs the room: the one with the shortest keep_alive.
"""

from typing import Final, Self

from pydantic import AwareDatetime, ValidationError

from adapters.providers import Setup
from adapters.providers.failures import malformed
from adapters.providers.http import PROBE_S, Upstream
from adapters.providers.ollama import UNKNOWN, keep_alive, load_options
from adapters.providers.residency import UNLOAD_MS, one_token, until, unusable
from router.errors import AttemptError
from router.ports import Held, Provider
from schemas.base import Wire
from schemas.failure import FailureKind

GENERATE: Final = "/api/generate"
LAST_YEAR: Final = 2200
"""What shall stay for ever is said to expire in 292 years."""


class _Row(Wire):
    name: str
    size: int = 0
    size_vram: int = 0
    context_length: int | None = None
    expires_at: AwareDatetime


class _Loaded(Wire):
    models: tuple[_Row, ...]


class OllamaResidency:
    """The memory of one Ollama server. Nothing but these loads and the chats of `provider` should use its models."""

    fixed = False

    def __init__(self, setup: Setup, provider: Provider) -> None:
        self._models = setup.models
        self._provider = provider
        self._upstream = Upstream(setup.url)
        self._loading: set[str] = set()

    @classmethod
    def of(cls, setup: Setup, provider: Provider) -> Self:
        return cls(setup, provider)

    async def models(self) -> dict[str, Held]:
        page = await self._upstream.fetch("GET", "/api/ps")
        try:
            rows = _Loaded.decode(page).models
        except ValidationError:
            raise malformed(f"{self._upstream.name}/api/ps is no list of models: is the url right?", page) from None
        held = {self._ours(row.name): _held(row) for row in rows}
        # It lists what is loading too, and does not tell it from what is there; what others load cannot be told.
        return held | {name: Held(loading=True) for name in self._loading}

    async def load(self, name: str) -> None:
        backend = self._models.get(name, UNKNOWN)
        options = {"keep_alive": keep_alive(backend), "options": load_options(backend)}
        self._loading.add(name)
        try:
            # What embeds takes no prompt to be loaded by, though one to be unloaded.
            path, more = ("/api/embed", {"input": "", **options}) if backend.embeds else (GENERATE, options)
            await self._empty_prompt(name, more, backend.load_ms / 1000, path)
        except AttemptError as error:
            if error.failure.kind is not FailureKind.SILENCE:
                raise
            why = f"{name} was not in memory after {backend.load_ms} ms and is given up: is `first_token_ms` too short?"
            raise AttemptError.of(FailureKind.SILENCE, why) from None
        finally:
            self._loading.discard(name)

    async def unload(self, name: str) -> None:
        await self._empty_prompt(name, {"keep_alive": 0})

        async def gone() -> bool:
            return name not in await self.models()

        await until(gone, UNLOAD_MS, f"{name} is still in memory after {UNLOAD_MS} ms: it generates, or it hangs")

    async def generates(self, name: str, within_ms: int) -> None:
        await one_token(self._provider, name, within_ms, embeds=self._models.get(name, UNKNOWN).embeds)

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def _empty_prompt(
        self, name: str, more: dict[str, object], within_s: float = PROBE_S, path: str = GENERATE
    ) -> None:
        body = {"model": name, "stream": False, **more}
        try:
            await self._upstream.fetch("POST", path, body, within_s=within_s)
        except AttemptError as error:
            if error.failure.status != 404:
                raise
            raise unusable(
                f"{name} is not on the disk of {self._upstream.name}: run `ollama pull {name}` there"
            ) from None

    def _ours(self, name: str) -> str:
        """As the policy has it: there, `llama3` is the same as `llama3:latest`."""
        short = name.removesuffix(":latest")
        return short if name not in self._models and short in self._models else name


def _held(row: _Row) -> Held:
    return Held(
        memory_bytes=row.size or None,
        gpu_bytes=row.size_vram,
        context_tokens=row.context_length,
        expires_at_ms=None if row.expires_at.year > LAST_YEAR else round(row.expires_at.timestamp() * 1000),
    )
