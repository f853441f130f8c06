"""A broker for every test that needs one: NATS_URL, the wheel's nats-server, or (marked) a container."""

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from adapters.bus import connect, provision
from ops.broker import server_path


def start_server(directory: Path, *, port: int = -1) -> tuple[subprocess.Popen[bytes], str]:
    """A nats-server on a free port of 127.0.0.1 with its store in `directory`, ready to be connected to."""
    for old in directory.glob("*.ports"):
        old.unlink()
    log = (directory / "nats.log").open("ab")
    with log:
        server = subprocess.Popen(
            [server_path(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory / "js"),
             "--ports_file_dir", str(directory)],
            stdout=log, stderr=log,
        )  # fmt: skip
    ports = directory / f"nats-server_{server.pid}.ports"
    deadline = time.monotonic() + 10
    while not (ports.exists() and ports.read_text()):
        assert server.poll() is None, (directory / "nats.log").read_text()
        assert time.monotonic() < deadline, "nats-server did not come up"
        time.sleep(0.005)
    return server, str(__import__("json").loads(ports.read_text())["nats"][0])


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    """A real nats-server, shared by the run: NATS_URL or the wheel's."""
    if url := os.environ.get("NATS_URL"):
        yield url
        return
    directory = Path(tempfile.mkdtemp(prefix="llmbus-nats-"))
    server, url = start_server(directory)
    try:
        yield url
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(directory, ignore_errors=True)
