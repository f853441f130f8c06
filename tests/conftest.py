"""A broker for every test that needs one: NATS_URL, the wheel's nats-server, or (marked) a container."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.docker_engine import need_image
from tests.support.nats_server import OwnBroker, start_server

if TYPE_CHECKING:
    from testcontainers.community.nats import NatsContainer

NATS_IMAGE = "nats:2"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "netns: makes network namespaces, which needs Linux, `ip` and root")
    config.addinivalue_line("markers", "claude_code: runs Claude Code, which npm has for Linux and macOS")


@pytest.fixture
def broker() -> Iterator[OwnBroker]:
    """A nats-server that the test may kill."""
    directory = Path(tempfile.mkdtemp(prefix="llmbus-nats-"))
    own = OwnBroker(directory, *start_server(directory))
    try:
        yield own
    finally:
        own.kill()
        shutil.rmtree(directory, ignore_errors=True)


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


@pytest.fixture(scope="session")
def container_nats_url() -> Iterator[str]:
    """A real nats-server in a container of its own; for tests marked `docker`."""
    with pytest.MonkeyPatch.context() as patch:
        # The container is ours to remove, and the reaper's image is one more to be had.
        patch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
        need_image(NATS_IMAGE)
        container = _container()
        try:
            yield container.nats_uri()
        finally:
            container.stop()


def _container() -> "NatsContainer":
    with warnings.catch_warnings():
        # It deprecates what it uses itself.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="testcontainers")
        from testcontainers.community.nats import NatsContainer

        container = NatsContainer(NATS_IMAGE, jetstream=True)
        try:
            return container.start()
        except BaseException:
            container.stop()
            raise
