"""The contract is the wire: a plain NATS client in JavaScript asks and submits, and reads answer, cost and latency."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.nats_server import OwnBroker
from tests.support.npm import assert_lock_names_no_registry, command, installed
from tests.support.running_bus import running_bus

SCRIPTS = Path(__file__).with_name("js")
PROMPT = "리스트를 뒤집는 함수를 작성해줘"

pytestmark = pytest.mark.node


@pytest.fixture
def scripts(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return installed(pytestconfig.cache, SCRIPTS)


def test_the_lock_names_no_registry() -> None:
    assert_lock_names_no_registry(SCRIPTS)


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
