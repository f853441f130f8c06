"""What a llama-server holds that was started without a model (router mode): one process for each model.

`/models` lists what is on its disk and the state of each, `/models/load` and `/models/unload` answer at once. When
`--models-max` is reached it kills the least recently used model, even amid an answer: a load that would do that is
refused here.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Literal, Self

from pydantic import ValidationError
from pydantic_core import from_json

from adapters.providers import Backend, Setup
from adapters.providers.failures import malformed
from adapters.providers.http import PROBE_S, Upstream
from adapters.providers.keys import Keys
from adapters.providers.residency import UNLOAD_MS, one_token, until, unusable
from router.errors import AttemptError
from router.ports import Held, Provider
from schemas.base import Wire
from schemas.failure import FailureKind

OUT: Final = frozenset({"unloaded", "downloading", "downloaded"})
"""No process. `sleeping` is one that has given its memory back, and wakes when it is called."""
UNKNOWN: Final = Backend()


class _Status(Wire):
    value: str
    failed: bool = False
    exit_code: int | None = None


class _Meta(Wire):
    n_ctx: int | None = None


class _Row(Wire):
    id: str
    aliases: tuple[str, ...] = ()
    status: _Status
    meta: _Meta | None = None


class _Listed(Wire):
    data: tuple[_Row, ...]


class LlamaServer:
    """The memory of one llama-server in router mode."""

    fixed = False

    def __init__(self, setup: Setup, provider: Provider) -> None:
        self._models = setup.models
        self._provider = provider
        self._keys = Keys(setup.keys, setup.key_names)
        root = (setup.url or "").rstrip("/").removesuffix("/v1")
        self._upstream = Upstream(root, setup.keys)

    @classmethod
    def of(cls, setup: Setup, provider: Provider) -> Self:
        return cls(setup, provider)

    async def models(self) -> dict[str, Held]:
        """It tells of no memory: what a model takes shows in what the machine has left."""
        return {
            name: Held(loading=row.status.value == "loading", context_tokens=row.meta.n_ctx if row.meta else None)
            for name, row in (await self._rows()).items()
            if row.status.value in ("loading", "loaded")
        }

    async def load(self, name: str) -> None:
        backend = self._models.get(name, UNKNOWN)
        load_ms = backend.load_ms
        state = (await self._row(name)).status.value
        if state == "loaded":
            return
        if state == "sleeping":
            await one_token(self._provider, name, load_ms, embeds=backend.embeds)
            return
        if state in OUT:
            await self._make_sure_of_a_place(name)
        late = f"{name} was not in memory after {load_ms} ms and is given up: is `first_token_ms` too short?"
        there = False
        try:
            if state in OUT:
                await self._tell("load", name)
            await until(lambda: self._loaded(name), load_ms, late)
            there = True
        finally:
            if not there:
                await self._give_up(name)

    async def unload(self, name: str) -> None:
        if (await self._row(name)).status.value in OUT:
            return
        await self._tell("unload", name)

        async def gone() -> bool:
            return (await self._row(name)).status.value in OUT

        await until(gone, UNLOAD_MS, f"{name} is still in memory after {UNLOAD_MS} ms: restart {self._upstream.name}")

    async def generates(self, name: str, within_ms: int) -> None:
        await one_token(self._provider, name, within_ms, embeds=self._models.get(name, UNKNOWN).embeds)

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def _loaded(self, name: str) -> bool:
        status = (await self._row(name)).status
        if status.value in OUT:
            how = f"its process ended with {status.exit_code}" if status.failed else "it was unloaded meanwhile"
            message = f"{name} could not be loaded: {how}; the log of {self._upstream.name} says more"
            raise AttemptError.of(FailureKind.SERVER_ERROR, message)
        return status.value == "loaded"

    async def _give_up(self, name: str) -> None:
        with suppress(AttemptError):  # it ended by itself, or cannot be reached
            await self._tell("unload", name)

    async def _make_sure_of_a_place(self, name: str) -> None:
        page = await self._get("/props")
        try:
            places = int(from_json(page).get("max_instances") or 0)
        except (ValueError, TypeError, AttributeError):
            raise malformed(f"{self._upstream.name}/props is not a llama-server's", page) from None
        taken = [other for other, row in (await self._rows()).items() if row.status.value not in OUT]
        if places and len(taken) >= places:
            raise AttemptError.of(
                FailureKind.INSUFFICIENT_MEMORY,
                f"{name} would push another model out of {self._upstream.name}, which holds {', '.join(taken)}:"
                f" unload one first, or start it with --models-max above {places}",
            )

    async def _row(self, name: str) -> _Row:
        row = (await self._rows()).get(name)
        if row is None:
            raise unusable(f"{name} is not among the models of {self._upstream.name}: put its GGUF file there")
        return row

    async def _rows(self) -> Mapping[str, _Row]:
        """By the policy's name where there is one."""
        page = await self._get("/models")
        try:
            rows = _Listed.decode(page).data
        except ValidationError:
            what = f"{self._upstream.name}/models tells no states: is it a llama-server started without a model?"
            raise malformed(what, page) from None
        return {next((name for name in (row.id, *row.aliases) if name in self._models), row.id): row for row in rows}

    async def _get(self, path: str) -> bytes:
        return await self._keys.using(lambda auth: self._upstream.fetch("GET", path, auth=auth))

    async def _tell(self, what: Literal["load", "unload"], name: str, within_s: float = PROBE_S) -> None:
        body: dict[str, Any] = {"model": name}
        await self._keys.using(
            lambda auth: self._upstream.fetch("POST", f"/models/{what}", body, auth=auth, within_s=within_s)
        )
