"""A storm over two routers and two nodes: everything is killed and frozen at random, models fail, clients ask twice and
call off. Whatever happens, every accepted request has one reply, its record, and nothing is left of its work.

    python -m tests.chaos.storm [--seed N] [--seconds S]

A program, run by hand with seeds of one's own; it exits with 1 and tells where the lost ones were last seen.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from adapters.bus import JetStreamBus, open_bus
from router.errors import BusError
from schemas import LlmRequest, Reply
from schemas import headers as h
from schemas.failure import FailureKind
from subjects import Cancel, Event, parse
from subjects.streams import EVENTS, REPLIES
from tests.chaos.test_kill import found_of, left_over
from tests.support.bus import POLICY, LiveBus, live_bus

CLIENT = "trader"
NODES = ("bench", "other")
FAILURES = tuple(sorted(set(FailureKind) - {FailureKind.DEADLINE, FailureKind.CANCELLED, FailureKind.POISON}))
DEADLINE_MS = 60_000
ANSWERED_S = DEADLINE_MS / 1000 + 20
SHOWN = 3


@dataclass(slots=True)
class Storm:
    live: LiveBus
    bus: JetStreamBus
    chance: random.Random
    ends_s: float
    accepted: set[str] = field(default_factory=set)
    acts: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._nemesis())
            numbers = iter(range(sys.maxsize))
            while time.monotonic() < self.ends_s:
                for _ in range(self.chance.randint(2, 12)):
                    tasks.create_task(self._client(f"r{next(numbers)}"))
                await asyncio.sleep(0.1)

    async def _nemesis(self) -> None:
        while time.monotonic() < self.ends_s:
            await asyncio.sleep(self.chance.uniform(0.3, 2))
            name = self.chance.choice(list(self.live.roles))
            if self.chance.random() < 0.35:
                self.acts[f"froze {name}"] += 1
                self.live.roles[name].freeze()
                await asyncio.sleep(self.chance.choice((1, 4, 9)))
                self.live.roles[name].thaw()
            else:
                self.acts[f"killed {name}"] += 1
                await asyncio.to_thread(self.live.restart, name)

    async def _client(self, rid: str) -> None:
        told: dict[str, object] = {"delay_ms": self.chance.choice((0, 0, 50, 300))}
        if self.chance.random() < 0.3:
            told["fail"] = self.chance.choice(FAILURES)
        request = LlmRequest(
            prompt=f"오늘 포지션의 위험을 요약해 줘 #{rid}", deadline_ms=DEADLINE_MS, metadata={"loopback": told},
            urgency=self.chance.choice(("normal", "high", "critical", "batch")),
        )  # fmt: skip
        headers = {h.REQUEST_ID: rid, h.CLIENT: CLIENT}
        again = 2 if self.chance.random() < 0.3 else 1
        await asyncio.gather(*(self._publish("llm.req.code", request.encode(), headers) for _ in range(again)))
        self.accepted.add(rid)
        if self.chance.random() < 0.1:
            await asyncio.sleep(self.chance.uniform(0, 1))
            await self._publish(str(Cancel(CLIENT, rid)), b"", {})

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        while True:
            try:
                await self.bus.publish(subject, body, headers=headers)
            except BusError:
                await asyncio.sleep(0.05)
            else:
                return

    async def faults(self) -> list[str]:
        """What is not as promised, once everything is answered or should be."""
        until_s = time.monotonic() + ANSWERED_S
        while (missing := self.accepted - (replies := await self._replies()).keys()) and time.monotonic() < until_s:
            await asyncio.sleep(0.5)
        print(", ".join(f"{count} {what}" for what, count in sorted(self.acts.items())))
        print(
            f"{len(self.accepted)} accepted: ", ", ".join(f"{n} {end}" for end, n in Counter(replies.values()).items())
        )
        kinds: Counter[tuple[str, str]] = Counter()
        async for letter in self.bus.read(EVENTS):
            if isinstance(address := parse(letter.subject), Event):
                kinds[address.rid, address.kind] += 1
        found = [await found_of(self.bus, {rid}) for rid in sorted(missing)[:SHOWN]]
        found += [f"{len(missing)} requests have no reply"] * bool(missing)
        found += [f"{rid} has {n} decisions" for rid in self.accepted if (n := kinds[rid, "decided"]) != 1]
        found += [f"{rid} has no record of its reply" for rid in replies if not kinds[rid, "replied"]]
        return found

    async def _replies(self) -> dict[str, str]:
        """How each ended. The stream holds one reply a request at most, by its own rule."""
        ends = {}
        async for letter in self.bus.read(REPLIES, f"llm.res.{CLIENT}.*"):
            reply = Reply.decode(letter.data)
            ends[reply.request_id] = reply.error.type.value if reply.error else reply.status
        return ends


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--seconds", type=float, default=45)
    asked = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    print(f"seed {asked.seed}, {asked.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        policy = Path(directory) / "policy.yaml"
        text = POLICY.read_text().replace("  bench: {}", "  bench: {}\n  other: {}")
        policy.write_text(text.replace("nodes: [bench]", f"nodes: [{', '.join(NODES)}]"))
        async with live_bus(routers=2, nodes=NODES, policy=policy) as live, open_bus(live.url, name="storm") as bus:
            supervisor = asyncio.create_task(live.supervise())
            storm = Storm(live, bus, random.Random(asked.seed), time.monotonic() + asked.seconds)
            await storm.run()
            found = await storm.faults()
            left = await left_over(bus)
            supervisor.cancel()
    print(f"{left} messages of work or outcomes are left", *found, sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    asyncio.run(main())
