"""The containers: what is written is valid, and where an engine runs, the whole bus comes up and outlives its parts."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import nats
import nats.errors
import pytest
import yaml
from nats.aio.msg import Msg

from ops.broker import server_path
from ops.policy_file import load_policy
from ops.policy_in_force import shipped_policy
from tests.support.docker_engine import need_image

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
SERVICES = yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]
NODES = set(SERVICES) - {"nats", "router", "edge"}


@dataclass
class Compose:
    """`docker compose` or the older `docker-compose`, on a project of its own."""

    command: list[str]
    environment: dict[str, str]
    project: str

    def run(self, *arguments: str) -> str:
        line = [*self.command, "-f", str(FILE), "-p", self.project, *arguments]
        ended = subprocess.run(
            line, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
        return ended.stdout


@pytest.fixture
def compose() -> Compose:
    project, ports = f"llmbus-test-{uuid4().hex[:8]}", {"NATS_PORT": free_port(), "NATS_MONITOR_PORT": free_port()}
    environment = {**os.environ, **ports}
    if (
        shutil.which("docker")
        and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    ):
        return Compose(["docker", "compose"], environment, project)
    if shutil.which("docker-compose"):
        # The old one cannot use the newer builder.
        old = {"DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
        return Compose(["docker-compose"], {**environment, **old}, project)
    pytest.skip("there is neither `docker compose` nor `docker-compose`")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_the_compose_file_is_valid(compose: Compose) -> None:
    told = yaml.safe_load(compose.run("config"))
    assert set(told["services"]) | {"edge"} == set(SERVICES)  # which has a profile
    for node in NODES:
        command = told["services"][node]["command"]
        assert (command if isinstance(command, list) else command.split()) == ["node", node, "--stand-in"]


def test_every_node_of_the_policy_has_its_executor() -> None:
    assert set(load_policy(shipped_policy(), "policy.yaml").nodes) == NODES


def test_the_containers_reach_no_further_than_they_must() -> None:
    for port in SERVICES["nats"]["ports"]:
        assert port.startswith("127.0.0.1:")
    for name in ("router", *NODES):
        service = SERVICES[name]
        assert service["depends_on"] == {"nats": {"condition": "service_healthy"}}
        assert (service["read_only"], service["cap_drop"], "ports" in service) == (True, ["ALL"], False)
    edge = SERVICES["edge"]
    assert "--behind-tls" in edge["command"]  # and so it wants keys
    assert all(port.startswith("127.0.0.1:") for port in edge["ports"])
    # Keys come from outside; none stands in the file.
    keys = {key: value for key, value in SERVICES["cloud"]["environment"].items() if key.endswith("_KEY")}
    providers = load_policy(shipped_policy(), "policy.yaml").providers.values()
    assert set(keys) == {key for provider in providers for key in provider.keys}
    assert set(keys.values()) == {None}


def test_the_brokers_configuration_is_valid_and_durable() -> None:
    path = ROOT / "ops" / "nats" / "nats.conf"
    checked = subprocess.run([server_path(), "-c", str(path), "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "sync_interval: always" in path.read_text(encoding="utf-8")


@pytest.fixture
def up(compose: Compose) -> Iterator[Compose]:
    """The whole bus, built and running."""
    need_image(SERVICES["nats"]["image"])
    need_image("python:3.12-slim")
    try:
        compose.run("up", "-d", "--build")
        yield compose
    finally:
        compose.run("down", "-v")


async def answered(url: str) -> Msg:
    """A request is answered, as soon as there is somebody to do it."""
    async with asyncio.timeout(60):
        while True:
            try:
                client = await nats.connect(url, max_reconnect_attempts=0, connect_timeout=1)
                try:
                    return await client.request("llm.ask.code", "안녕하세요".encode(), timeout=20)
                finally:
                    await client.close()
            except (OSError, nats.errors.Error):
                await asyncio.sleep(0.2)


@pytest.mark.docker
@pytest.mark.timeout(600)
async def test_the_whole_bus_comes_up_in_containers_and_outlives_its_parts(up: Compose) -> None:
    url = f"nats://127.0.0.1:{up.environment['NATS_PORT']}"
    routers = (await asyncio.to_thread(up.run, "ps", "-q", "router")).split()
    assert len(routers) == 2
    assert (await asyncio.to_thread(up.run, "exec", "-T", "router", "id", "-u")).strip() != "0"
    for arguments in ((), ("kill", routers[0]), ("restart", "-t", "0", *up.run("ps", "-q", "nats").split())):
        if arguments:
            await asyncio.to_thread(subprocess.run, ["docker", *arguments], check=True, capture_output=True)
        reply = await answered(url)
        assert reply.headers is not None
        assert reply.headers["Llm-Status"] == "ok"
        assert reply.headers["Llm-Provider"] == "loopback"
