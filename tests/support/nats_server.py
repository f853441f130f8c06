"""Real nats-servers for tests, each in a directory of its own."""

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from ops.broker import server_path


def start_server(
    directory: Path, *options: str, port: int = -1, jetstream: bool = True
) -> tuple[subprocess.Popen[bytes], str]:
    """A nats-server on a free port of 127.0.0.1 with its store in `directory`, ready to be connected to."""
    for old in directory.glob("*.ports"):
        old.unlink()
    store = ("-js", "-sd", str(directory / "js")) if jetstream else ()
    log = (directory / "nats.log").open("ab")
    with log:
        server = subprocess.Popen(
            [server_path(), "-a", "127.0.0.1", "-p", str(port), *store, "--ports_file_dir", str(directory), *options],
            stdout=log, stderr=log,
        )  # fmt: skip
    ports = directory / f"nats-server_{server.pid}.ports"
    deadline = time.monotonic() + 10
    while not (ports.exists() and ports.read_text()):
        assert server.poll() is None, (directory / "nats.log").read_text()
        assert time.monotonic() < deadline, "nats-server did not come up"
        time.sleep(0.005)
    return server, str(json.loads(ports.read_text())["nats"][0])


@dataclass
class OwnBroker:
    """A nats-server of one test: it can be killed, and comes back on the same port and store."""

    directory: Path
    server: subprocess.Popen[bytes]
    url: str

    def kill(self) -> None:
        """As a power cut would: no goodbye."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait(10)

    def start(self) -> None:
        self.server, self.url = start_server(self.directory, port=int(self.url.rpartition(":")[2]))

    def restart(self) -> None:
        self.kill()
        self.start()
