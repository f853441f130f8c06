"""What was spent, on a real bus: summed by the command, priced anew, and looked up without burdening any role."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from adapters.bus import open_bus
from ops.broker import broker
from ops.policy_file import load_policy
from ops.policy_in_force import policy_store, shipped_policy
from schemas import LlmRequest, Reply
from schemas.event import Replied
from subjects.streams import EVENTS
from tests.support.inside import POLICY, Inside, inside

MYSTERY = """\
  mystery:
    nodes: [bench]
    provider: loopback
    backend: mystery
    context_tokens: 100000
    quality: 0.5
    tokens_per_s: 1000
capabilities:
"""
pytestmark = pytest.mark.asyncio(loop_scope="module")
PRICED = POLICY.replace("capabilities:\n", MYSTERY)
OWN_PRICE = "tokens_per_s: 1000\n    price: {input_usd_per_mtok: 100, output_usd_per_mtok: 100}\ncapabilities:\n"


async def llmbus(url: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What a command says on stdout and on stderr."""
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ops.cli", *arguments, "--nats-url", url),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ | {"COLUMNS": "140"},
    )  # fmt: skip
    async with asyncio.timeout(30):
        out, errors = await ran.communicate()
    assert ran.returncode == code, errors.decode()
    return out.decode(), errors.decode()


async def cost(whole: Inside, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await llmbus(whole.url, "cost", "--json", *arguments))[0])
    return found


async def ask(whole: Inside, prompt: str, **fields: Any) -> Reply:
    return await whole.client.ask(LlmRequest(prompt=prompt, **fields), capability="chat")


async def recorded(whole: Inside, count: int) -> None:
    """Wait until that many requests have their last record: live replies overtake it."""
    async with asyncio.timeout(10):
        while True:
            found = {Replied.decode(letter.data).rid async for letter in whole.bus.read(EVENTS, "llm.evt.*.*.replied")}
            if len(found) == count:
                return
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spent() -> AsyncIterator[tuple[Inside, list[Reply]]]:
    """A bus on which three agents have asked; one of them a model without a price."""
    async with inside(policy=PRICED) as whole:
        replies = [
            await ask(whole, "여관의 소문을 하나 들려줘", agent="npc-ai"),
            await ask(whole, "A second rumour, please", agent="npc-ai", task="code"),
            await ask(whole, "Compare the two rumours", agent="gm", model="spare"),
            await ask(whole, "값을 모르는 모델", agent="gm", model="mystery"),
            await ask(whole, "Nobody in particular asks"),
        ]
        await recorded(whole, len(replies))
        yield whole, replies


def billed(replies: list[Reply]) -> Decimal:
    return sum((reply.cost_usd for reply in replies if reply.cost_usd is not None), Decimal(0))


async def test_what_was_spent_is_summed_by_agent(spent: tuple[Inside, list[Reply]]) -> None:
    whole, replies = spent
    found = await cost(whole)
    rows = {row["agent"]: row for row in found["rows"]}
    assert {agent: row["requests"] for agent, row in rows.items()} == {"npc-ai": 2, "gm": 2, None: 1}
    assert Decimal(rows["npc-ai"]["billed_usd"]) == billed(replies[:2]) > 0
    assert Decimal(rows["gm"]["billed_usd"]) == billed(replies[2:3])
    assert (rows["gm"]["billed_unknown"], rows["npc-ai"]["billed_unknown"]) == (1, 0)
    assert Decimal(found["total"]["billed_usd"]) == billed(replies)
    assert found["unknown"] == [{"model": "mystery", "why": "no_price", "attempts": 1}]


@pytest.mark.parametrize("by", ["agent", "model", "provider", "task", "client", "day"])
async def test_every_grouping_says_the_same(spent: tuple[Inside, list[Reply]], by: str) -> None:
    whole, replies = spent
    found = await cost(whole, "--by", by)
    assert found["total"] == (await cost(whole))["total"]
    assert sum(Decimal(row["billed_usd"]) for row in found["rows"]) == billed(replies)
    assert sum(row["tokens_out"] for row in found["rows"]) == sum(r.usage.tokens_out for r in replies if r.usage)


async def test_the_table_shows_what_is_not_known_and_what_to_do(spent: tuple[Inside, list[Reply]]) -> None:
    whole, _ = spent
    shown, _ = await llmbus(whole.url, "cost", "--by", "model")
    assert re.search(r"^mystery +1 +1 .* \? +\$0 +1$", shown, re.MULTILINE)
    assert re.search(r"^total +5 +5 .*\$[0-9.]+ \+ \? +\$0 +1$", shown, re.MULTILINE)
    assert "1 attempt of mystery: it has no price. Give `models.mystery` a `price`" in shown


async def test_a_model_that_gets_a_price_is_priced_anew(spent: tuple[Inside, list[Reply]], tmp_path: Path) -> None:
    whole, replies = spent
    dearer = tmp_path / "dearer.yaml"
    dearer.write_text(
        PRICED.replace("tokens_per_s: 1000\ncapabilities:\n", OWN_PRICE).replace("usd_per_mtok: 3", "usd_per_mtok: 30")
    )
    found = await cost(whole, "--by", "model", "--prices", str(dearer))
    rows = {row["model"]: row for row in found["rows"]}
    usage = replies[3].usage
    assert usage is not None
    assert Decimal(rows["mystery"]["billed_usd"]) == (usage.tokens_in + usage.tokens_out) * Decimal("0.0001")
    spare = replies[2]
    assert spare.usage is not None
    assert spare.cost_usd is not None
    assert Decimal(rows["spare"]["billed_usd"]) == spare.cost_usd + spare.usage.tokens_in * Decimal("0.000027")
    assert (found["unknown"], found["prices"]) == ([], str(dearer))
    current = await cost(whole, "--prices", "current")
    assert (current["total"], current["prices"]) == ((await cost(whole))["total"], "policy revision 1")


async def test_only_the_time_and_the_client_that_were_asked_for_count(spent: tuple[Inside, list[Reply]]) -> None:
    whole, _ = spent
    assert (await cost(whole, "--since", "1h"))["total"]["requests"] == 5
    assert (await cost(whole, "--until", "2020-01-01"))["rows"] == []
    assert (await cost(whole, "--client", "nobody"))["rows"] == []
    assert "no request on record matches" in (await llmbus(whole.url, "cost", "--until", "2020-01-01"))[0]


async def test_a_wrong_grouping_or_price_list_is_named(spent: tuple[Inside, list[Reply]]) -> None:
    whole, _ = spent
    assert "did you mean 'model'?" in (await llmbus(whole.url, "cost", "--by", "modle", code=1))[1]
    assert "nowhere.yaml cannot be read" in (await llmbus(whole.url, "cost", "--prices", "nowhere.yaml", code=1))[1]


async def test_what_failed_stands_apart_from_the_answers() -> None:
    async with inside(policy=PRICED) as whole:
        for kind in ("rate_limited", "interrupted"):
            told = {"loopback": {"fail": kind}}
            ticket = await whole.client.submit(LlmRequest(prompt="안 될 거야", metadata=told), capability="chat")
            reply = await whole.client.result(ticket.request_id, timeout_s=20)
            assert reply is not None
            assert reply.status == "error"
        good = await ask(whole, "될 거야")
        await recorded(whole, 3)
        total = (await cost(whole))["total"]
        assert (total["requests"], Decimal(total["billed_usd"]), total["billed_unknown"]) == (3, good.cost_usd, 0)
        assert total["attempts"] >= 5, "each model was tried"
        assert total["wasted_unknown"] or Decimal(total["wasted_usd"]) > 0


ROLES = """
import asyncio, sys
from ops.node import node
from ops.router import router
async def main():
    async with router({url!r}), node({url!r}, "cloud", stand_in=True, environ={{}}):
        print(sorted(name for name in ("genai_prices", "httpx2") if name in sys.modules))
asyncio.run(main())
"""


async def test_router_and_node_seed_an_empty_bus_with_prices_without_carrying_the_price_list(tmp_path: Path) -> None:
    async with broker(tmp_path, sync_interval="2m") as server:
        ran = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ROLES.format(url=server.url)),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(30):
            out, errors = await ran.communicate()
        assert ran.returncode == 0, errors.decode()
        assert "[]" in out.decode().splitlines()
        async with open_bus(server.url, name="looking") as bus:
            revision = await (await policy_store(bus)).active()
            assert revision is not None
            assert revision.prices is not None
            unpriced = {
                name for name, model in load_policy(shipped_policy(), "shipped").models.items() if not model.price
            }
            assert revision.prices.models.keys() == unpriced >= {"gemini", "gpt", "claude", "command"}
        shown, _ = await llmbus(server.url, "policy", "prices")
        assert re.search(r"^gpt +gpt-4\.1 +2 +0\.5 +8 +looked up *$", shown, re.MULTILINE)
        assert re.search(r"^gemini .*0\.3 .*free tier *$", shown, re.MULTILINE)
        assert re.search(r"^coder .* policy *$", shown, re.MULTILINE)
        facts = json.loads((await llmbus(server.url, "policy", "prices", "1", "--json"))[0])
        assert facts["models"]["claude"]["price"]["above"][0]["above_tokens_in"] == 200_000
        assert facts["looked_up"] == {
            "version": revision.prices.version,
            "as_of": revision.prices.as_of.isoformat(),
        }
