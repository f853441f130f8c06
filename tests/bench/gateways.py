"""What the edge's benchmark compares: our own stack, LiteLLM's proxy and Portkey's gateway, each started as users do.

The peers are installed once, from their locks, into `.venv/bench-peers`. They are given their best: one worker each,
no database, no logging, no prices fetched.
"""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import yaml

from adapters.bus import connect, provision
from ops.broker import broker
from ops.policy_store import PolicyStore
from subjects.streams import POLICY_BUCKET
from tests.bench.bus import process
from tests.bench.edge_load import Caller, Run, Target
from tests.support.bus import free_port

BIN: Final = Path(sys.executable).parent
LOCKS: Final = Path(__file__).with_name("peers")
INSTALLED: Final = Path(__file__).parents[2] / ".venv" / "bench-peers"
INSTALL_S: Final = 900
START_S: Final = 90
SLOTS: Final = 256
PATHS: Final = {"fast": "0-0", "slow": "50-0", "spoken": "50-2"}
"""Models by what their upstream does: answers at once, after 50 ms, after 50 ms with 2 ms between two tokens."""


class NotToBeHadError(Exception):
    """A peer cannot be installed here."""


@dataclass(slots=True)
class Gateway:
    """What stands between the client and the upstream."""

    name: str
    targets: Mapping[str, Target]
    """By model."""
    processes: Mapping[str, psutil.Process] = field(default_factory=dict)
    start_s: float | None = None
    """From nothing to its first answer."""

    def rss_mb(self) -> float:
        return sum(each.memory_info().rss for each in self._all()) / 1e6

    def pss_mb(self) -> float:
        """With the pages that processes share counted once, where the system tells that."""
        return sum(getattr(each.memory_full_info(), "pss", 0) for each in self._all()) / 1e6

    def cpu_s(self) -> dict[str, float]:
        return {name: sum(each.cpu_times()[:2]) for name, each in self.processes.items()}

    def _all(self) -> Iterator[psutil.Process]:
        """With children: what is called one process may be several."""
        for each in self.processes.values():
            yield each
            yield from each.children(recursive=True)


async def first_answer(target: Target, model: str, begun_s: float, alive: Callable[[], bool]) -> float:
    """Seconds since `begun_s` to the first good answer, asked for again and again."""
    while time.perf_counter() < begun_s + START_S and alive():
        run = Run()
        try:
            async with asyncio.timeout(START_S), Caller.open(target.port) as caller:
                await caller.ask(target.request(model, stream=False), run)
        except OSError:
            pass
        if run.whole_ms:
            return time.perf_counter() - begun_s
        await asyncio.sleep(0.01)
    raise SystemExit(f"no answer on port {target.port} within {START_S} s: {run.failed}")


@asynccontextmanager
async def direct(port: int) -> AsyncIterator[Gateway]:
    yield Gateway("direct", {model: Target(port, f"/{path}/v1/chat/completions") for model, path in PATHS.items()})


def policy(upstream_port: int) -> str:
    model = {
        "nodes": ["bench"], "backend": "m", "context_tokens": 100_000, "quality": 0.5, "tokens_per_s": 1000,
        "slots": SLOTS, "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2},
    }  # fmt: skip
    return yaml.safe_dump(
        {
            "version": 1,
            "nodes": {"bench": {}},
            "providers": {
                name: {"dialect": "openai", "url": f"http://127.0.0.1:{upstream_port}/{path}/v1"}
                for name, path in PATHS.items()
            },
            "models": {name: {**model, "provider": name} for name in PATHS},
            "capabilities": {"chat": {"models": ["fast"]}},
            "default": {"models": ["fast"]},
            "guardrails": {"secrets": {"action": "redact"}, "injection": {"action": "block", "threshold": 0.5}},
        }
    )


@asynccontextmanager
async def llmbus(upstream_port: int, *, sync_interval: str = "always") -> AsyncIterator[Gateway]:
    """Broker, router, node and edge, started side by side on a store that holds the policy already."""
    with tempfile.TemporaryDirectory(prefix="llmbus-bench-") as place:
        directory, port, http_port = Path(place), free_port(), free_port()
        async with (
            broker(directory, port=port, sync_interval=sync_interval) as server,
            connect(server.url, name="bench") as nc,
        ):
            await provision(nc)
            store = PolicyStore(await nc.jetstream().key_value(POLICY_BUCKET))
            await store.apply(policy(upstream_port), "policy.yaml")
        begun_s = time.perf_counter()
        at = ("--nats-url", f"nats://127.0.0.1:{port}")
        command = str(BIN / "llmbus")
        with ExitStack() as stack:
            roles = {
                "edge": stack.enter_context(process(command, "edge", "--port", str(http_port), *at)),
                "router": stack.enter_context(process(command, "router", *at)),
                "executor": stack.enter_context(process(command, "node", "bench", *at)),
            }
            async with broker(directory, port=port, sync_interval=sync_interval) as server:
                roles["nats-server"] = psutil.Process(server.process.pid)
                target = Target(http_port)
                start_s = await first_answer(target, "fast", begun_s, roles["edge"].is_running)
                name = "llmbus" if sync_interval == "always" else f"llmbus, sync {sync_interval}"
                yield Gateway(name, dict.fromkeys(PATHS, target), roles, start_s)
                stack.close()  # before the broker


@asynccontextmanager
async def litellm(upstream_port: int) -> AsyncIterator[Gateway]:
    python = INSTALLED / "litellm" / "bin"
    lock = LOCKS / "litellm.lock"
    _installed(
        python.parent, lock, [sys.executable, "-m", "venv", "--clear", str(python.parent)],
        [str(python / "python"), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(lock)],
    )  # fmt: skip
    port = free_port()
    config = {
        "model_list": [
            {"model_name": model, "litellm_params": {
                "model": "openai/m", "api_base": f"http://127.0.0.1:{upstream_port}/{path}/v1", "api_key": "none"}}
            for model, path in PATHS.items()
        ],
        "litellm_settings": {"telemetry": False, "turn_off_message_logging": True},
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True, "disable_spend_logs": True},
    }  # fmt: skip
    environ = {
        **os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="llmbus-bench-") as place:
        path = Path(place) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        command = (
            str(python / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port),
            "--num_workers", "1", "--telemetry", "False",
        )  # fmt: skip
        async with _peer("LiteLLM", command, environ, dict.fromkeys(PATHS, Target(port))) as gateway:
            yield gateway


@asynccontextmanager
async def portkey(upstream_port: int) -> AsyncIterator[Gateway]:
    directory = INSTALLED / "portkey"
    lock = LOCKS / "package-lock.json"
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise NotToBeHadError("there is no node, or no npm")
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(LOCKS / name, directory)
    _installed(
        directory, lock,
        ["npm", "--prefix", str(directory), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"],
    )  # fmt: skip
    port = free_port()
    targets = {
        model: Target(
            port,
            headers={
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"http://127.0.0.1:{upstream_port}/{path}/v1",
                "authorization": "Bearer none",
            },
        )
        for model, path in PATHS.items()
    }
    server = directory / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    environ = {**os.environ, "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost", "NODE_ENV": "production"}
    async with _peer(
        "Portkey", ("node", str(server), f"--port={port}", "--headless"), environ, targets
    ) as gateway:  # fmt: skip
        yield gateway


@asynccontextmanager
async def _peer(
    name: str, command: tuple[str, ...], environ: Mapping[str, str], targets: Mapping[str, Target]
) -> AsyncIterator[Gateway]:
    with tempfile.TemporaryFile() as log, _quiet(command, environ, log.fileno()) as running:
        alive = running.is_running
        start_s = await first_answer(targets["fast"], "fast", time.perf_counter(), alive)
        yield Gateway(name, targets, {name: running}, start_s)


@contextmanager
def _quiet(command: tuple[str, ...], environ: Mapping[str, str], log: int) -> Iterator[psutil.Process]:
    child = subprocess.Popen(command, env=dict(environ), stdout=log, stderr=log, cwd=INSTALLED)
    try:
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _installed(directory: Path, lock: Path, *commands: list[str]) -> None:
    """Install what the lock says, unless that was done. Raises NotToBeHadError."""
    stamp, wanted = directory / ".lock", hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {directory.name} into {INSTALLED}, once ...", flush=True)
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or b""
            raise NotToBeHadError(said.decode(errors="replace").strip()[-300:] or str(error)) from None
    stamp.write_text(wanted)
