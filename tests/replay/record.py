"""Record a history: what was asked, what the router knew and decided, and the policy it decided by.

    python -m tests.replay.record NAME

runs the demo's prompts through a real bus with the shipped policy and writes `histories/NAME.json`. Histories are kept:
a later router must decide each of them the same way, or a test says which and how.
"""

import asyncio
import json
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from adapters.bus import open_bus
from adapters.client import Client, RequestFailedError
from ops.broker import broker
from ops.node import node
from ops.policy_in_force import policy_store
from ops.router import router
from schemas.request import LlmRequest
from subjects.streams import EVENTS, REQUESTS

HISTORIES = Path(__file__).with_name("histories")
PROMPTS = Path(__file__).parents[2] / "ops" / "demo" / "prompts.jsonl"
NOT_OF_THE_REQUEST = ("capability", "lang", "source", "license", "expect")


async def ask(url: str, row: dict[str, Any]) -> None:
    request = LlmRequest(**{name: value for name, value in row.items() if name not in NOT_OF_THE_REQUEST})
    async with Client.connect(url, row["agent"]) as client:
        try:
            await client.ask(request, capability=row["capability"])
        except RequestFailedError:
            return  # a refusal is a decision too


async def record(name: str) -> int:
    """Write the history; the number of decisions in it."""
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmbus-record-"))
        url = (await stack.enter_async_context(broker(Path(directory), sync_interval="2m"))).url
        await stack.enter_async_context(router(url))
        for each in ("macbook", "macmini", "cloud"):
            await stack.enter_async_context(node(url, each, stand_in=True, environ={}))
        for row in rows:
            await ask(url, row)
        bus = await stack.enter_async_context(open_bus(url, name="record"))
        revision = await (await policy_store(bus)).get(1)
        requests = [
            {
                "seq": letter.seq,
                "subject": letter.subject,
                "headers": dict(letter.headers),
                "body": letter.data.decode(),
            }
            async for letter in bus.read(REQUESTS)
        ]
        decided = [json.loads(letter.data) async for letter in bus.read(EVENTS, "llm.evt.*.*.decided")]
    history = {
        "policy": revision.text,
        "prices": revision.prices.model_dump(mode="json") if revision.prices else None,
        "requests": requests,
        "decided": decided,
    }
    HISTORIES.mkdir(exist_ok=True)
    (HISTORIES / f"{name}.json").write_text(json.dumps(history, ensure_ascii=False, indent=1) + "\n")
    return len(decided)


if __name__ == "__main__":
    print(asyncio.run(record(sys.argv[1])), "decisions recorded")
