"""A stand-in of Ollama: its API, its scheduler, its memory and its ways to fail, without a model."""

import asyncio
import hashlib
import ipaddress
import json
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Self

from tests.support.ollama_answers import FakeModel, Refused, check, embedded, fitted, joined, line, pieces, seconds
from tests.support.ollama_memory import DEFAULT_NUM_CTX, Loaded, Memory
from tests.support.scripted_upstream import Exchange, ScriptedUpstream

__all__ = ["FakeModel", "FakeOllama"]

Fault = Literal["error_first", "error_midway", "no_done", "cut", "stall_first", "stall_midway"]
TEXT: Final = {"Content-Type": "text/plain; charset=utf-8"}
NDJSON: Final = {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked", "Connection": "close"}
WHOLE: Final = {"Content-Type": "application/json; charset=utf-8", "Connection": "close"}
"""A connection that was watched for its client's leaving is of no use afterwards."""
FOREVER: Final = timedelta(days=292 * 365)
DETAILS: Final = {"format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "8.0B",
                  "quantization_level": "Q4_K_M"}  # fmt: skip


@dataclass
class FakeOllama:
    """Use as `async with FakeOllama({...}) as ollama:`; it listens on `ollama.url`."""

    models: Mapping[str, FakeModel]
    memory_gb: float = math.inf
    parallel: int = 1
    max_loaded: int = 3
    max_queue: int = 512
    on_gpu: bool = True
    faults: deque[Fault] = field(default_factory=deque)
    """Each spoils one chat or embedding, in order."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Open from the start; while it is cleared nothing more is generated."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """A client left while it was served."""
    chats: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all chats."""
    embeds: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all that had something to embed."""

    async def __aenter__(self) -> Self:
        self.gate.set()
        self.memory = Memory(self.models, self.memory_gb, self.max_loaded, self.parallel)
        self.memory.load_gate.set()
        self.memory.unload_gate.set()
        self._server = await ScriptedUpstream(self._route).__aenter__()
        self.url = self._server.url
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.__aexit__()

    async def die(self) -> None:
        """Killed: every connection is cut, and nothing is in memory."""
        await self._server.close()
        self.memory.loaded.clear()

    async def come_back(self) -> None:
        """Started again, at the same address."""
        self._server = await ScriptedUpstream(self._route, port=self._server.port).__aenter__()

    @property
    def in_memory(self) -> set[str]:
        return set(self.memory.loaded)

    @property
    def loads(self) -> list[str]:
        return self.memory.loads

    @property
    def evictions(self) -> list[str]:
        return self.memory.evictions

    @property
    def load_gate(self) -> asyncio.Event:
        """Open from the start; while it is cleared no load ends."""
        return self.memory.load_gate

    @property
    def unload_gate(self) -> asyncio.Event:
        """Open from the start; while it is cleared no memory is given back, as a GPU takes its time."""
        return self.memory.unload_gate

    @property
    def load_began(self) -> asyncio.Event:
        return self.memory.load_began

    async def _route(self, exchange: Exchange) -> None:
        pages = {"/": self._alive, "/api/version": self._version, "/api/tags": self._tags, "/api/ps": self._ps}
        calls = {"/api/chat": self._chat, "/api/generate": self._generate, "/api/embed": self._embed}
        calls["/api/show"] = self._show
        known = ("POST",) if exchange.path in calls else ("GET", "HEAD") if exchange.path == "/" else ("GET",)
        if not _local(exchange.headers.get("host", "")):
            await exchange.reply(403, b"", TEXT)
        elif exchange.path not in pages | calls:
            await exchange.reply(404, b"404 page not found", TEXT)
        elif exchange.method not in known:
            await exchange.reply(405, b"405 method not allowed", TEXT)
        elif exchange.path in calls:
            await exchange.while_connected(self._call(exchange, calls[exchange.path]))
        elif exchange.method == "HEAD":
            await exchange.head(200, {**TEXT, "Content-Length": "17"})
        else:
            body = pages[exchange.path]()
            await exchange.reply(200, body, *((TEXT,) if exchange.path == "/" else ()))

    def _alive(self) -> bytes:
        return b"Ollama is running"

    def _version(self) -> bytes:
        return b'{"version":"0.33.0"}'

    def _row(self, name: str) -> dict[str, Any]:
        size = int(self.models[name].gb * 1e9)
        return {
            "name": name,
            "model": name,
            "size": size,
            "digest": hashlib.sha256(name.encode()).hexdigest(),
            "details": DETAILS,
        }

    def _tags(self) -> bytes:
        rows = [
            {**self._row(name), "modified_at": "2026-08-01T00:00:00Z", "capabilities": model.capabilities}
            for name, model in self.models.items()
        ]
        return json.dumps({"models": rows}).encode()

    def _ps(self) -> bytes:
        """Also what is loading; the longest-living first."""
        lives = {name: (model.expires_at, model.num_ctx) for name, model in self.memory.loaded.items()}
        for name, options in self.memory.loading.items():
            lives[name] = (math.inf, int(options.get("num_ctx", DEFAULT_NUM_CTX)))
        rows = [
            {**self._row(name), "size_vram": self._row(name)["size"] if self.on_gpu else 0,
             "expires_at": _moment(expires_at), "context_length": num_ctx}
            for name, (expires_at, num_ctx) in sorted(lives.items(), key=lambda one: -one[1][0])
        ]  # fmt: skip
        return json.dumps({"models": rows}).encode()

    async def _call(self, exchange: Exchange, serve: Any) -> None:
        try:
            await serve(exchange, self._checked(exchange))
        except Refused as refused:
            await exchange.reply(refused.status, json.dumps({"error": refused.error}).encode(), WHOLE)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def _checked(self, exchange: Exchange) -> dict[str, Any]:
        try:
            body: dict[str, Any] = exchange.json()
        except ValueError:
            raise Refused(400, "invalid character in body") from None
        if not body.get("model"):
            raise Refused(400, "model is required")
        for name in (body["model"], f"{body['model']}:latest"):
            if name in self.models:
                check(body, self.models[name])
                return {**body, "model": name}
        raise Refused(404, f"model '{body['model']}' not found")

    async def _show(self, exchange: Exchange, body: dict[str, Any]) -> None:
        model = self.models[body["model"]]
        shown = {"details": DETAILS, "model_info": {"general.architecture": "llama"}, "template": "{{ .Prompt }}"}
        await exchange.reply(200, json.dumps({**shown, "capabilities": model.capabilities}).encode(), WHOLE)

    async def _generate(self, exchange: Exchange, body: dict[str, Any]) -> None:
        asked = {**body, "prompt": body.get("prompt") or ""}
        turns = [{"role": "user", "content": asked["prompt"]}] if asked["prompt"] else []
        await self._serve(exchange, {**asked, "messages": turns})

    async def _chat(self, exchange: Exchange, body: dict[str, Any]) -> None:
        if body.get("messages"):
            self.chats.append(body)
        await self._serve(exchange, {name: value for name, value in body.items() if name != "prompt"})

    async def _serve(self, exchange: Exchange, body: dict[str, Any]) -> None:
        name, keep_s, options = body["model"], seconds(body.get("keep_alive")), body.get("options") or {}
        if self.models[name].dimensions and (body.get("messages") or keep_s != 0):
            raise Refused(400, f'"{name}" does not support {"generate" if "prompt" in body else "chat"}')
        if not body.get("messages"):
            await self._load_or_unload(exchange, body, keep_s)
            return
        fault = self.faults.popleft() if self.faults else None
        if fault == "error_first":
            raise Refused(500, "model runner has unexpectedly stopped")
        started = time.perf_counter_ns()
        model = await self.memory.obtain(name, options, keep_s, self.max_queue)
        try:
            load_ns = time.perf_counter_ns() - started
            tokens_in = fitted(body, model.num_ctx)
            async with model.places:
                last = {"load_duration": load_ns, "prompt_eval_count": tokens_in, "prompt_eval_duration": 1000}
                await self._answer(exchange, body, fault, _Ending(started, last, model))
        finally:
            await self.memory.release(name)

    async def _embed(self, exchange: Exchange, body: dict[str, Any]) -> None:
        """Without a text it loads, and says nothing but that there are no vectors."""
        name, asked = body["model"], bool(body.get("input"))
        if asked:
            self.embeds.append(body)
        fault = self.faults.popleft() if self.faults and asked else None
        if fault == "error_first":
            raise Refused(500, "model runner has unexpectedly stopped")
        started = time.perf_counter_ns()
        loaded = await self.memory.obtain(
            name, body.get("options") or {}, seconds(body.get("keep_alive")), self.max_queue
        )
        load_ns = time.perf_counter_ns() - started
        try:
            if fault == "stall_first":
                await asyncio.Event().wait()
            async with loaded.places:
                await self.gate.wait()
                vectors, tokens_in = embedded(body, self.models[name], loaded.num_ctx)
        finally:
            await self.memory.release(name)
        total_ns = time.perf_counter_ns() - started
        counts = {"total_duration": total_ns, "load_duration": load_ns, "prompt_eval_count": tokens_in}
        page = json.dumps({"model": name, "embeddings": vectors, **(counts if vectors else {})}).encode()
        if fault == "cut":
            await exchange.head(200, {**WHOLE, "Content-Length": str(len(page))})
            await exchange.send(page[: len(page) // 2])
            return
        await exchange.reply(200, page, WHOLE)

    async def _load_or_unload(self, exchange: Exchange, body: dict[str, Any], keep_s: float | None) -> None:
        if keep_s == 0:
            await self.memory.unload(body["model"])
        else:
            await self.memory.obtain(body["model"], body.get("options") or {}, keep_s, self.max_queue)
            await self.memory.release(body["model"])
        reason = "unload" if keep_s == 0 else "load"
        await exchange.reply(200, line(body, {"content": ""}, {"done": True, "done_reason": reason}), WHOLE)

    async def _answer(self, exchange: Exchange, body: dict[str, Any], fault: Fault | None, ending: "_Ending") -> None:
        if fault == "stall_first":
            await asyncio.Event().wait()
        said = pieces(body, self.models[body["model"]])
        room = ending.room(body.get("options") or {})
        last = {"done_reason": "length" if room < len(said) else "stop"}
        said = said[:room]
        if body.get("stream") is False:
            await self.gate.wait()
            await exchange.reply(200, line(body, joined(said), ending.metrics(len(said)) | last), WHOLE)
            return
        await exchange.head(200, NDJSON)
        for n, message in enumerate(said):
            await self.gate.wait()
            if n == len(said) // 2 and fault in {"error_midway", "no_done", "cut", "stall_midway"}:
                await self._spoil(exchange, fault)
                return
            await exchange.chunk(line(body, message, {"done": False}))
        await exchange.chunk(line(body, {"content": ""}, ending.metrics(len(said)) | last))
        await exchange.chunk(b"")

    async def _spoil(self, exchange: Exchange, fault: Fault | None) -> None:
        if fault == "stall_midway":
            await asyncio.Event().wait()
        if fault == "error_midway":
            await exchange.chunk(b'{"error":"an error was encountered while running the model"}\n')
        if fault != "cut":
            await exchange.chunk(b"")


@dataclass(frozen=True)
class _Ending:
    """What the last object tells of a call."""

    started_ns: int
    counts: dict[str, int]
    model: Loaded

    def room(self, options: Mapping[str, Any]) -> int:
        """How many tokens may be said: `num_predict`, capped when it is endless, and what the context has left."""
        wanted = options.get("num_predict", -1)
        left = self.model.num_ctx - self.counts["prompt_eval_count"]
        return max(0, min(wanted if wanted >= 0 else 10 * self.model.num_ctx, left))

    def metrics(self, said: int) -> dict[str, Any]:
        """In nanoseconds; whatever is 0 is left out."""
        total = {"total_duration": time.perf_counter_ns() - self.started_ns}
        counts = {**total, **self.counts, "eval_count": said, "eval_duration": 1_000_000 * said}
        return {"done": True, **{name: value for name, value in counts.items() if value}}


def _moment(at_monotonic: float) -> str:
    left = FOREVER if math.isinf(at_monotonic) else timedelta(seconds=at_monotonic - time.monotonic())
    return (datetime.now(UTC) + left).isoformat().replace("+00:00", "Z")


def _local(host: str) -> bool:
    """What a server on loopback lets in: anything else may be a page in somebody's browser."""
    name = host.rsplit(":", 1)[0].strip("[]")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith((".local", ".internal", ".localhost"))
    return address.is_private or address.is_loopback
