"""A whole bus of real processes that can be killed and come back: nats-server, routers, executors."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapters.bus import connect, provision
from ops.broker import server_path
from ops.policy_store import PolicyStore
from router.errors import UnavailableError
from subjects.streams import NODES_BUCKET, POLICY_BUCKET

LLMBUS = Path(sys.executable).with_name("llmbus")
POLICY = Path(__file__).with_name("data") / "loopback_policy.yaml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class Role:
    """A process that can be killed and started again the same way."""

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    kills: int = 0
    changing: threading.Lock = field(default_factory=threading.Lock)
    """Of a nemesis in a thread and a supervisor in the loop, one at a time."""

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        """SIGKILL: no chance to say goodbye."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.kills += 1

    def freeze(self) -> None:
        """SIGSTOP, as when a lid closes: it is there, and does nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.thaw()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass(slots=True)
class LiveBus:
    """nats-server on a fixed port, `routers` routers and the nodes, each under its own name."""

    url: str
    directory: Path
    roles: dict[str, Role] = field(default_factory=dict)

    def restart(self, name: str) -> None:
        role = self.roles[name]
        with role.changing:
            role.kill()
            role.start()

    async def supervise(self) -> None:
        """Start again what ended by itself, as systemd, compose and `llmbus up` do; for ever."""
        while True:
            await asyncio.sleep(0.2)
            for role in self.roles.values():
                with role.changing:
                    if role.process is not None and role.process.poll() is not None:
                        role.start()


@contextmanager
def processes(
    directory: Path, *, routers: int = 1, nodes: Sequence[str] = ("bench",), sync_interval: str = "always"
) -> Iterator[LiveBus]:
    """All roles, of which the broker is started; the log of each in `directory`. Ends them all."""
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    config = directory / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\nmax_payload: 8MB\n'
        f'jetstream {{ store_dir: "{directory}/js", sync_interval: {sync_interval}, max_file_store: 64GB }}\n'
    )
    commands = {
        "nats": [server_path(), "-c", str(config)],
        **{name: [str(LLMBUS), "node", name, "--nats-url", url] for name in nodes},
        **{f"router{n}": [str(LLMBUS), "router", "--nats-url", url] for n in range(routers)},
    }
    bus = LiveBus(url, directory, {name: Role(cmd, directory / f"{name}.log") for name, cmd in commands.items()})
    bus.roles["nats"].start()
    try:
        yield bus
    finally:
        for name, role in reversed(bus.roles.items()):
            if name != "nats":
                role.stop()
        bus.roles["nats"].stop()


@asynccontextmanager
async def live_bus(
    *, routers: int = 1, policy: Path = POLICY, nodes: Sequence[str] = ("bench",), later: Sequence[str] = ()
) -> AsyncIterator[LiveBus]:
    """A bus that answers: streams made, the policy applied, the nodes heard; `later` are nodes still to be started."""
    with (
        tempfile.TemporaryDirectory(prefix="llmbus-test-") as directory,
        processes(Path(directory), routers=routers, nodes=(*nodes, *later)) as bus,
    ):
        async with connect(bus.url, name="test set-up", wait_s=10) as nc:
            await ready(bus, nc_wait_s=10)
            await provision(nc)
            store = PolicyStore(await nc.jetstream().key_value(POLICY_BUCKET))
            await store.apply(policy.read_text(), policy.name)
            beats = [await nc.subscribe(f"$KV.{NODES_BUCKET}.{node}", max_msgs=1) for node in nodes]
            await nc.flush()
            for name, role in bus.roles.items():
                if name != "nats" and name not in later:
                    role.start()
            for beat in beats:
                await beat.next_msg(30)
        yield bus


async def ready(bus: LiveBus, *, nc_wait_s: float) -> None:
    """JetStream answers."""
    deadline = time.monotonic() + nc_wait_s
    while True:
        try:
            async with connect(bus.url, name="probe", wait_s=1) as nc:
                await nc.request("$JS.API.INFO", b"", timeout=1)
                return
        except (UnavailableError, TimeoutError, OSError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


def environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that would lead a test to a paid service."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith(("_API_KEY", "_API_KEY_FILE", "NATS_URL"))
    }
    return {**kept, **more}
