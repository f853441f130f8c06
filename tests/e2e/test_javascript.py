"""The contract is the wire: a plain NATS client in JavaScript asks and submits, and reads answer, cost and latency."""

import asyncio
import json
import re
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.nats_server import OwnBroker
from tests.support.running_bus import running_bus

SCRIPTS = Path(__file__).with_name("js")
PROMPT = "리스트를 뒤집는 함수를 작성해줘"

pytestmark = pytest.mark.node


async def command(directory: Path, *arguments: str) -> str:
    """What a command prints; it must succeed within a minute."""
    process = await asyncio.create_subprocess_exec(
        *arguments, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.fixture
async def scripts(tmp_path: Path) -> Path:
    """The scripts with what they need, installed from their lock into a directory of its own."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    directory = tmp_path / "js"
    shutil.copytree(SCRIPTS, directory, ignore=shutil.ignore_patterns("node_modules"))
    try:
        await command(directory, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    except AssertionError as error:
        if re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH", str(error)):
            pytest.skip("npm reaches no package registry")
        raise
    return directory


def test_the_lock_names_no_registry() -> None:
    lock = json.loads((SCRIPTS / "package-lock.json").read_text(encoding="utf-8"))
    packages = [package for path, package in lock["packages"].items() if path]
    assert len(packages) > 2
    assert all("resolved" not in package and package["integrity"].startswith("sha512-") for package in packages)


async def test_a_plain_javascript_client_is_answered(broker: OwnBroker, scripts: Path) -> None:
    async with running_bus(broker.url):
        asked: dict[str, Any] = json.loads(await command(scripts, "node", "ask.mjs", broker.url, PROMPT))
        rid = uuid4().hex
        submitted: dict[str, Any] = json.loads(
            await command(scripts, "node", "submit.mjs", broker.url, "npc-ai", rid, PROMPT)
        )
    for reply in (asked, submitted):
        assert reply["status"] == "ok", reply
        assert PROMPT in reply["content"]
        assert Decimal(reply["cost"]) == 0
        assert float(reply["latency"]) >= 0
    assert (submitted["stream"], submitted["id"]) == ("LLM_REQUESTS", rid)
    assert float(submitted["latency"]) == pytest.approx(submitted["total_ms"], abs=0.051)


async def test_a_refusal_reaches_a_javascript_client(broker: OwnBroker, scripts: Path) -> None:
    async with running_bus(broker.url):
        reply = json.loads(await command(scripts, "node", "ask.mjs", broker.url, ""))
    assert (reply["status"], reply["error"]["type"]) == ("error", "bad_request")
    assert reply["cost"] is None or reply["cost"] == ""
