"""aimock: somebody else's mock of OpenAI, Anthropic, Gemini and Cohere (npm, MIT), with faults on cue and a journal."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.npm_package import installed

PACKAGE: Final = Path(__file__).parents[1] / "peers" / "aimock"
NODE: Final = (20, 15)


@dataclass(frozen=True, slots=True)
class Aimock:
    """A running aimock that knows no answers until it is taught some."""

    http: httpx.AsyncClient

    @property
    def url(self) -> str:
        return str(self.http.base_url).rstrip("/")

    async def teach(self, *fixtures: dict[str, Any]) -> None:
        """Answer the next requests by these, the first that matches; `match` is any request unless it says more."""
        taught = [{"match": {}, **fixture} for fixture in fixtures]
        (await self.http.post("/__aimock/fixtures", json={"fixtures": taught})).raise_for_status()

    async def chaos(self, **rates: float) -> None:
        """Faults in place of answers: `dropRate`, `malformedRate`, `disconnectRate`, `rateLimitRate`, each up to 1."""
        (await self.http.post("/__aimock/chaos", json=rates)).raise_for_status()

    async def asked(self) -> list[dict[str, Any]]:
        """What it was asked since the test began: `path`, `headers`, `body` as it read it, `response`."""
        journal = await self.http.get("/__aimock/journal", params={"method": "POST"})
        entries: list[dict[str, Any]] = journal.json()
        return entries


@contextmanager
def serving(cache: pytest.Cache) -> Iterator[str]:
    """Its url. Skips the test where node, or the registry for the first installation, cannot be had."""
    directory = _installed(cache)
    command = [str(directory / "node_modules" / ".bin" / "llmock"), "-h", "127.0.0.1", "-p", "0", "-f", "none.json"]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as node:
        assert node.stdout is not None
        try:
            said = ""
            while not (found := re.search(r"listening on (http://\S+)", said)):
                line = node.stdout.readline()
                assert line, f"aimock did not start: {said}"
                said += line
            yield found[1]
        finally:
            node.terminate()


def _installed(cache: pytest.Cache) -> Path:
    if shutil.which("node") is None:
        pytest.skip(f"there is no node: install node {NODE[0]} or newer")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, version.strip("v\n").split(".")[:2])) < NODE:
        pytest.skip(f"aimock needs node {NODE[0]}.{NODE[1]} or newer, this is {version.strip()}")
    directory = installed(cache, PACKAGE)
    (directory / "none.json").write_text('{"fixtures": []}')
    return directory
