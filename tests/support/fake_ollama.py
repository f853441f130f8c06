"""A stand-in of Ollama: its API, its scheduler, its memory and its ways to fail, without a model."""

import asyncio
import json
import math
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from tests.support.scripted_upstream import Exchange, ScriptedUpstream

Fault = Literal["error_first", "error_midway", "no_done", "cut", "stall_first", "stall_midway"]
NDJSON = {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked", "Connection": "close"}
DEFAULT_KEEP_ALIVE_S = 300.0
DEFAULT_NUM_CTX = 4096
UNIT_S = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
BUSY = "server busy, please try again.  maximum pending requests exceeded"


@dataclass(frozen=True)
class FakeModel:
    """A model on disk, and what it says. Without `answer` it repeats the last turn."""

    gb: float = 1
    load_s: float = 0
    answer: tuple[str, ...] | None = None
    thinking: tuple[str, ...] = ()
    tool_calls: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass
class _Loaded:
    num_ctx: int
    places: asyncio.Semaphore
    keep_alive_s: float = DEFAULT_KEEP_ALIVE_S
    expires_at: float = math.inf
    active: int = 0


@dataclass
class _Refused(Exception):  # noqa: N818 - an answer, not an error
    status: int
    error: str


@dataclass
class FakeOllama:
    """Use as `async with FakeOllama({...}) as ollama:`; it listens on `ollama.url`."""

    models: Mapping[str, FakeModel]
    memory_gb: float = math.inf
    parallel: int = 1
    max_queue: int = 512
    faults: deque[Fault] = field(default_factory=deque)
    """Each spoils one chat, in order."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Open from the start; while it is cleared nothing more is generated."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """A client left while it was served."""
    loads: list[str] = field(default_factory=list)
    evictions: list[str] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all chats."""

    async def __aenter__(self) -> Self:
        self.gate.set()
        self._loaded: dict[str, _Loaded] = {}
        self._changed = asyncio.Condition()
        self._loader = asyncio.Lock()
        self._waiting = 0
        self._server = await ScriptedUpstream(self._route).__aenter__()
        self.url = self._server.url
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.__aexit__()

    @property
    def in_memory(self) -> set[str]:
        now = time.monotonic()
        for name in [name for name, model in self._loaded.items() if not model.active and model.expires_at <= now]:
            del self._loaded[name]
        return set(self._loaded)

    async def _route(self, exchange: Exchange) -> None:
        pages = {"/": self._alive, "/api/version": self._version, "/api/tags": self._tags, "/api/ps": self._ps}
        calls = {"/api/chat": self._chat, "/api/generate": self._generate}
        wanted = "POST" if exchange.path in calls else "GET"
        if exchange.path not in pages | calls:
            await exchange.reply(404, b"404 page not found", {"Content-Type": "text/plain"})
        elif exchange.method != wanted:
            await exchange.reply(405, b"405 method not allowed", {"Content-Type": "text/plain"})
        elif exchange.path in pages:
            await exchange.reply(200, pages[exchange.path]())
        else:
            await exchange.while_connected(self._call(exchange, calls[exchange.path]))

    def _alive(self) -> bytes:
        return b"Ollama is running"

    def _version(self) -> bytes:
        return b'{"version":"0.33.0"}'

    def _tags(self) -> bytes:
        rows = [{"name": name, "model": name, "size": int(model.gb * 1e9)} for name, model in self.models.items()]
        return json.dumps({"models": rows}).encode()

    def _ps(self) -> bytes:
        names = sorted(self.in_memory, key=lambda name: -self._loaded[name].expires_at)
        rows = [
            {"name": name, "model": name, "size": (size := int(self.models[name].gb * 1e9)), "size_vram": size,
             "context_length": self._loaded[name].num_ctx}
            for name in names
        ]  # fmt: skip
        return json.dumps({"models": rows}).encode()

    async def _call(self, exchange: Exchange, serve: Any) -> None:
        try:
            await serve(exchange, self._checked(exchange))
        except _Refused as refused:
            await exchange.reply(refused.status, json.dumps({"error": refused.error}).encode())
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def _checked(self, exchange: Exchange) -> dict[str, Any]:
        try:
            body: dict[str, Any] = exchange.json()
        except ValueError:
            raise _Refused(400, "invalid character in body") from None
        if not body.get("model"):
            raise _Refused(400, "model is required")
        if body["model"] not in self.models:
            raise _Refused(404, f"model '{body['model']}' not found")
        return body

    async def _generate(self, exchange: Exchange, body: dict[str, Any]) -> None:
        if body.get("prompt"):
            raise _Refused(400, "this stand-in only loads and unloads here")
        await self._load_or_unload(exchange, body, {"response": ""})

    async def _load_or_unload(self, exchange: Exchange, body: dict[str, Any], empty: dict[str, Any]) -> None:
        name, keep_s = body["model"], _seconds(body.get("keep_alive"))
        if keep_s == 0:
            if name in self._loaded:
                self._loaded[name].keep_alive_s = 0
                await self._left(name)
        else:
            await self._obtain(name, body.get("options") or {}, keep_s)
            await self._release(name)
        reason = "unload" if keep_s == 0 else "load"
        await exchange.reply(200, json.dumps({"model": name, **empty, "done": True, "done_reason": reason}).encode())

    async def _chat(self, exchange: Exchange, body: dict[str, Any]) -> None:
        empty = {"message": {"role": "assistant", "content": ""}}
        if not body.get("messages"):
            await self._load_or_unload(exchange, body, empty)
            return
        self.chats.append(body)
        fault = self.faults.popleft() if self.faults else None
        if fault == "error_first":
            raise _Refused(500, "model runner has unexpectedly stopped")
        name, started = body["model"], time.perf_counter_ns()
        model = await self._obtain(name, body.get("options") or {}, _seconds(body.get("keep_alive")))
        try:
            load_ns = time.perf_counter_ns() - started
            tokens_in = sum(len(turn.get("content") or "") for turn in body["messages"]) // 4
            if body.get("truncate") is False and tokens_in > model.num_ctx:
                raise _Refused(400, "the prompt is too long; exceeded max context length")
            async with model.places:
                await self._answer(exchange, body, fault, _counts(tokens_in, load_ns, started))
        finally:
            await self._release(name)

    async def _answer(
        self, exchange: Exchange, body: dict[str, Any], fault: Fault | None, last: dict[str, Any]
    ) -> None:
        pieces = self._pieces(body)
        limit = (body.get("options") or {}).get("num_predict", len(pieces))
        last["done_reason"] = "length" if limit < len(pieces) else "stop"
        pieces = pieces[:limit]
        if fault == "stall_first":
            await asyncio.Event().wait()
        await exchange.head(200, NDJSON)
        for n, message in enumerate(pieces):
            await self.gate.wait()
            if n == len(pieces) // 2 and fault in {"error_midway", "no_done", "cut", "stall_midway"}:
                await self._spoil(exchange, fault)
                return
            await exchange.chunk(_line(body, message, {"done": False}))
        now = time.perf_counter_ns()
        counts = {**last, "eval_count": len(pieces), "eval_duration": 1_000_000 * len(pieces)}
        counts["total_duration"] = now - counts.pop("started")
        end = {"done": True} | {name: value for name, value in counts.items() if value}
        await exchange.chunk(_line(body, {"content": ""}, end))
        await exchange.chunk(b"")

    async def _spoil(self, exchange: Exchange, fault: Fault | None) -> None:
        if fault == "stall_midway":
            await asyncio.Event().wait()
        if fault == "error_midway":
            await exchange.chunk(b'{"error":"an error was encountered while running the model"}\n')
        if fault != "cut":
            await exchange.chunk(b"")

    def _pieces(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        model = self.models[body["model"]]
        said = model.answer
        if said is None:
            said = tuple(re.findall(r"\S+\s*", body["messages"][-1].get("content") or ""))
        calls = [
            {"id": f"call_{n}", "function": {"index": n, "name": name, "arguments": arguments}}
            for n, (name, arguments) in enumerate(model.tool_calls)
        ]
        thoughts = [{"content": "", "thinking": piece} for piece in model.thinking]
        return [
            *thoughts,
            *({"content": piece} for piece in said),
            *({"content": "", "tool_calls": [c]} for c in calls),
        ]

    async def _obtain(self, name: str, options: Mapping[str, Any], keep_s: float | None) -> _Loaded:
        """The model in memory, counted as in use. Loads run one after another and make room first."""
        num_ctx = int(options.get("num_ctx", DEFAULT_NUM_CTX))
        if not self._fits(name, num_ctx):
            if self._waiting >= self.max_queue:
                raise _Refused(503, BUSY)
            self._waiting += 1
            try:
                async with self._loader:
                    if not self._fits(name, num_ctx):
                        await self._load(name, num_ctx)
            finally:
                self._waiting -= 1
        model = self._loaded[name]
        model.active += 1
        model.keep_alive_s = DEFAULT_KEEP_ALIVE_S if keep_s is None else keep_s
        model.expires_at = math.inf
        return model

    def _fits(self, name: str, num_ctx: int) -> bool:
        return name in self.in_memory and self._loaded[name].num_ctx == num_ctx

    async def _load(self, name: str, num_ctx: int) -> None:
        async with self._changed:
            if name in self._loaded:  # other load options: once it is idle, it is loaded anew
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
        await asyncio.sleep(self.models[name].load_s)
        self.loads.append(name)
        self._loaded[name] = _Loaded(num_ctx, asyncio.Semaphore(self.parallel))

    def _has_room(self, name: str) -> bool:
        return sum(self.models[other].gb for other in {*self.in_memory, name}) <= self.memory_gb or not self._loaded

    async def _release(self, name: str) -> None:
        self._loaded[name].active -= 1
        await self._left(name)

    async def _left(self, name: str) -> None:
        model = self._loaded[name]
        model.expires_at = time.monotonic() + model.keep_alive_s
        if not model.active and model.keep_alive_s == 0:
            del self._loaded[name]
        async with self._changed:
            self._changed.notify_all()


def _counts(tokens_in: int, load_ns: int, started: int) -> dict[str, Any]:
    """The start of the metrics, in nanoseconds."""
    return {"started": started, "load_duration": load_ns, "prompt_eval_count": tokens_in, "prompt_eval_duration": 1000}


def _line(body: Mapping[str, Any], message: Mapping[str, Any], end: Mapping[str, Any]) -> bytes:
    said = {"role": "assistant", **message}
    line = {"model": body["model"], "created_at": "2026-08-21T00:00:00Z", "message": said, **end}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _seconds(keep_alive: float | str | None) -> float | None:
    """A number of seconds, or a Go duration; whatever is negative is for ever."""
    if isinstance(keep_alive, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", keep_alive)
        if not parts or "".join(map("".join, parts)) != keep_alive.removeprefix("-"):
            raise _Refused(400, f'time: missing unit in duration "{keep_alive}"')
        total = sum(float(number) * UNIT_S[unit] for number, unit in parts)
        keep_alive = -total if keep_alive.startswith("-") else total
    return math.inf if keep_alive is not None and keep_alive < 0 else keep_alive
