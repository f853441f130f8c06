"""The embedded broker: the nats-server of the locked wheel on loopback, durable, one per store directory."""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from router.errors import LlmbusError

READY_TIMEOUT_S = 10
STOP_TIMEOUT_S = 10

FRUGAL = {"GOGC": "25"}
"""Garbage is collected sooner than Go would by itself: half the memory for 8 % more of the server's CPU."""

CONFIG = """\
# Written anew at every start by `llmbus`; change the settings there.
server_name: llmbus
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor_port}"
max_payload: 8MB
ports_file_dir: "{directory}"
jetstream {{
  store_dir: "{directory}/jetstream"
  sync_interval: {sync_interval}
  max_memory_store: 512MB
  max_file_store: 64GB
}}
"""


class BrokerError(LlmbusError):
    """The embedded broker did not start, and what to do."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A running nats-server."""

    url: str
    monitor_url: str
    process: asyncio.subprocess.Process


def server_path() -> str:
    """The nats-server of the wheel, beside this Python, or the one on PATH. Raises BrokerError."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise BrokerError("no nats-server found; run `make setup`, or set NATS_URL to a running server")
    return found


@asynccontextmanager
async def broker(
    directory: Path, *, port: int = -1, monitor_port: int = -1, sync_interval: str = "always"
) -> AsyncIterator[Broker]:
    """Run a nats-server on `directory` until the context ends; port -1 is a free one. Raises BrokerError.

    nats-server does not lock its store, and two servers on one store destroy it: the lock is ours.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        started = await start(directory, port=port, monitor_port=monitor_port, sync_interval=sync_interval)
        try:
            yield started
        finally:
            await _stop(started.process)


async def start(directory: Path, *, port: int, monitor_port: int, sync_interval: str) -> Broker:
    """A nats-server that is ready. The caller holds the lock and stops it."""
    config = directory / "nats-server.conf"
    config.write_text(
        CONFIG.format(port=port, monitor_port=monitor_port, directory=directory, sync_interval=sync_interval)
    )
    for old in directory.glob("nats-server_*.ports"):
        old.unlink()
    log_path = directory / "nats-server.log"
    with log_path.open("ab") as log:
        # Its own session: Ctrl-C reaches us, and we stop it last.
        process = await asyncio.create_subprocess_exec(
            server_path(), "-c", str(config), stdout=log, stderr=log, start_new_session=True,
            env={**FRUGAL, **os.environ},
        )  # fmt: skip
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            ports = await _ports(directory, process, log_path)
            await _healthy(ports["monitoring"][0])
    except BaseException as error:
        await _stop(process)
        if isinstance(error, TimeoutError):
            raise BrokerError(f"nats-server is not ready after {READY_TIMEOUT_S} s; its log: {log_path}") from error
        raise
    return Broker(ports["nats"][0], ports["monitoring"][0], process)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise BrokerError(
                f"{directory} is in use by process {holder}; stop that one, or choose another store with --store"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


async def _ports(directory: Path, process: asyncio.subprocess.Process, log_path: Path) -> dict[str, list[str]]:
    path = directory / f"nats-server_{process.pid}.ports"
    while not path.exists() or not path.read_text():
        if process.returncode is not None:
            words = " | ".join(log_path.read_text(errors="replace").splitlines()[-2:])
            raise BrokerError(f"nats-server ended at once: {words}; its log: {log_path}")
        await asyncio.sleep(0.005)
    ports: dict[str, list[str]] = json.loads(path.read_text())
    return ports


async def _healthy(monitor_url: str) -> None:
    """Wait for 200 on /healthz: JetStream has recovered its streams."""
    host, port = monitor_url.removeprefix("http://").rsplit(":", 1)
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return
        await asyncio.sleep(0.01)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
