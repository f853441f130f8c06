"""Two machines on a table: network namespaces joined by a cable that can be pulled, the hub on one of them."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from adapters.bus import connect, provision
from ops.broker import server_path
from ops.policy_store import PolicyStore
from subjects.streams import POLICY_BUCKET
from tests.support.bus import LLMBUS, LiveBus, Role, environment, ready

NATS = Path(__file__).resolve().parents[2] / "ops/nats"
HUB_ADDRESS = "169.254.19.104"
LAPTOP_ADDRESS = "169.254.7.21"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)


class Table:
    """`mini` and `laptop` by a cable with link-local addresses; this process looks into `mini` by another."""

    def __init__(self) -> None:
        self._n = os.getpid()
        self.mini, self.laptop = f"llmbus-mini-{self._n}", f"llmbus-laptop-{self._n}"
        self._look = f"lb{self._n}"
        subnet = f"169.254.{200 + self._n % 50}"
        self._looker, self.hub_seen = f"{subnet}.1/30", f"{subnet}.2"

    def room(self) -> None:
        """What may be forbidden. Raises CalledProcessError."""
        for space in (self.mini, self.laptop):
            _run("ip", "netns", "add", space)

    def lay(self) -> None:
        for space in (self.mini, self.laptop):
            _run("ip", "-n", space, "link", "set", "lo", "up")
        _run("ip", "link", "add", "bridge0", "netns", self.mini, "type", "veth",
             "peer", "name", "bridge0", "netns", self.laptop)  # fmt: skip
        _run("ip", "-n", self.laptop, "address", "add", f"{LAPTOP_ADDRESS}/16", "dev", "bridge0")
        _run("ip", "-n", self.laptop, "link", "set", "bridge0", "up")
        self.plug()
        _run("ip", "link", "add", self._look, "type", "veth", "peer", "name", "look", "netns", self.mini)
        _run("ip", "-n", self.mini, "address", "add", f"{self.hub_seen}/30", "dev", "look")
        _run("ip", "-n", self.mini, "link", "set", "look", "up")
        _run("ip", "address", "add", self._looker, "dev", self._look)
        _run("ip", "link", "set", self._look, "up")

    def pull(self) -> None:
        """As macOS does it: without the cable, the address is gone too."""
        _run("ip", "-n", self.mini, "address", "flush", "dev", "bridge0")
        _run("ip", "-n", self.mini, "link", "set", "bridge0", "down")

    def plug(self) -> None:
        _run("ip", "-n", self.mini, "address", "add", f"{HUB_ADDRESS}/16", "dev", "bridge0")
        _run("ip", "-n", self.mini, "link", "set", "bridge0", "up")

    def clear(self) -> None:
        laid = (("link", self._look), ("netns", self.mini), ("netns", self.laptop))
        for kind, name in laid:
            subprocess.run(["ip", kind, "delete", name], capture_output=True, check=False, timeout=20)

    def on(self, machine: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", machine, *command]

    def llmbus(self, machine: str, *words: str) -> list[str]:
        """The command line there. The hub is where its machine would look for it."""
        url = f"nats://{'127.0.0.1' if machine == self.mini else HUB_ADDRESS}:4222"
        return self.on(machine, "env", f"NATS_URL={url}", str(LLMBUS), *words)

    def ask(self, machine: str, *words: str) -> str:
        """What the command line says there, on both its streams."""
        ended = subprocess.run(
            self.llmbus(machine, *words), capture_output=True, text=True, timeout=60, check=False,
            env=environment(COLUMNS="200"),
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stdout + ended.stderr


@contextmanager
def table() -> Iterator[Table]:
    """Skips the test where namespaces may not be made."""
    made = Table()
    try:
        try:
            made.room()
        except FileNotFoundError:
            pytest.skip("`ip` (iproute2) is not installed")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        made.lay()
        yield made
    finally:
        made.clear()


@asynccontextmanager
async def two_machines(on: Table, directory: Path, policy: Path, nodes: dict[str, str]) -> AsyncIterator[LiveBus]:
    """The hub as it is shipped, a router on each machine, and `nodes` on theirs, which are yet to be started."""
    commands = {
        "nats": on.on(on.mini, server_path(), "-c", str(NATS / "hub.conf"), "-sd", str(directory / "js")),
        "router-mini": on.llmbus(on.mini, "router"),
        "router-laptop": on.llmbus(on.laptop, "router"),
        **{node: on.llmbus(machine, "node", node) for node, machine in nodes.items()},
    }
    roles = {name: Role(command, directory / f"{name}.log") for name, command in commands.items()}
    live = LiveBus(f"nats://{on.hub_seen}:4222", directory, roles)
    roles["nats"].start()
    try:
        await ready(live, nc_wait_s=10)
        async with connect(live.url, name="test set-up", wait_s=10) as client:
            await provision(client)
            await PolicyStore(await client.jetstream().key_value(POLICY_BUCKET)).apply(policy.read_text(), policy.name)
        roles["router-mini"].start()
        roles["router-laptop"].start()
        yield live
    finally:
        for role in reversed(roles.values()):
            role.stop()
