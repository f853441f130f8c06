"""Ollama's scheduler, without models: what is in memory, what has to leave it, and who waits."""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support.ollama_answers import FakeModel, Refused

DEFAULT_KEEP_ALIVE_S: Final = 300.0
DEFAULT_NUM_CTX: Final = 4096
LOAD_OPTIONS: Final = ("num_ctx", "num_batch", "num_gpu", "use_mmap", "main_gpu", "num_thread")
"""A model that was loaded with other ones is loaded anew."""
BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"


@dataclass
class Loaded:
    """A model in memory; it stays until `expires_at` (monotonic) once nobody uses it."""

    options: dict[str, Any]
    places: asyncio.Semaphore
    keep_alive_s: float = DEFAULT_KEEP_ALIVE_S
    expires_at: float = math.inf
    active: int = 0
    leaving: bool = False
    """Unloaded, and its memory not given back yet."""

    @property
    def num_ctx(self) -> int:
        return int(self.options.get("num_ctx", DEFAULT_NUM_CTX))


@dataclass
class Memory:
    """Loads go one after another, in order; what is loaded already serves meanwhile."""

    models: Mapping[str, FakeModel]
    memory_gb: float
    max_loaded: int
    parallel: int
    load_gate: asyncio.Event = field(default_factory=asyncio.Event)
    load_began: asyncio.Event = field(default_factory=asyncio.Event)
    unload_gate: asyncio.Event = field(default_factory=asyncio.Event)
    loads: list[str] = field(default_factory=list)
    evictions: list[str] = field(default_factory=list)
    loading: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._loaded: dict[str, Loaded] = {}
        self._changed = asyncio.Condition()
        self._loader = asyncio.Lock()
        self._waiting = 0

    @property
    def loaded(self) -> dict[str, Loaded]:
        now = time.monotonic()
        for name, model in tuple(self._loaded.items()):
            model.leaving |= not model.active and model.expires_at <= now
            if model.leaving and self.unload_gate.is_set():
                del self._loaded[name]
        return self._loaded

    async def obtain(self, name: str, wanted: Mapping[str, Any], keep_s: float | None, max_queue: int) -> Loaded:
        """The model, counted as in use. Raises Refused when it would have to be loaded and too many wait for that."""
        options = {option: wanted[option] for option in LOAD_OPTIONS if option in wanted}
        if not self._fits(name, options):
            if self._waiting >= max_queue:
                raise Refused(503, BUSY)
            self._waiting += 1
            try:
                async with self._loader:
                    if not self._fits(name, options):
                        await self._load(name, options)
            finally:
                self._waiting -= 1
        model = self._loaded[name]
        model.active += 1
        model.keep_alive_s = DEFAULT_KEEP_ALIVE_S if keep_s is None else keep_s
        model.expires_at = math.inf
        return model

    async def release(self, name: str) -> None:
        self._loaded[name].active -= 1
        await self._left(name)

    async def unload(self, name: str) -> None:
        """At once, or after the requests in flight."""
        if name in self._loaded:
            self._loaded[name].keep_alive_s = 0
            await self._left(name)

    def _fits(self, name: str, options: Mapping[str, Any]) -> bool:
        model = self.loaded.get(name)
        return model is not None and not model.leaving and model.options == options

    async def _load(self, name: str, options: dict[str, Any]) -> None:
        """Whoever asked for it may leave: then the load is given up, and the next who waits starts its own."""
        await self.unload_gate.wait()
        await self._make_room(name)
        if (needed_gb := self.models[name].gb) > self.memory_gb:
            available = f"than is available ({self.memory_gb:.1f} GiB)"
            raise Refused(500, f"model requires more system memory ({needed_gb:.1f} GiB) {available}")
        self.loading[name] = options
        self.load_began.set()
        try:
            await asyncio.sleep(self.models[name].load_s)
            await self.load_gate.wait()
        finally:
            del self.loading[name]
        self.loads.append(name)
        self._loaded[name] = Loaded(options, asyncio.Semaphore(self.parallel))

    async def _make_room(self, name: str) -> None:
        async with self._changed:
            if name in self.loaded:  # other load options: once it is idle, it is loaded anew
                await self._changed.wait_for(lambda: not self._loaded[name].active)
                del self._loaded[name]
            while not self._has_room(name):
                idle = [other for other, model in self._loaded.items() if not model.active]
                if not idle:
                    await self._changed.wait()
                    continue
                victim = min(idle, key=lambda other: (self._loaded[other].keep_alive_s, other))
                del self._loaded[victim]
                self.evictions.append(victim)

    def _has_room(self, name: str) -> bool:
        used_gb = sum(self.models[other].gb for other in {*self.loaded, name})
        return not self._loaded or (used_gb <= self.memory_gb and len(self._loaded) < self.max_loaded)

    async def _left(self, name: str) -> None:
        model = self._loaded[name]
        model.expires_at = time.monotonic() + model.keep_alive_s
        async with self._changed:
            self._changed.notify_all()
