"""The load of the benchmarks: requests of a fixed size, a fixed number in flight, the same for every pattern."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

PROMPT_BYTES = 1500
PROMPT = (
    "Write a function that merges overlapping intervals and explain its complexity. "
    "겹치는 구간을 합치는 함수를 작성하고 복잡도를 설명해 주세요. "
)
TEXT = (PROMPT * 20).encode()[:PROMPT_BYTES].decode(errors="ignore")
HERE = "<n>"
"""Where each request differs from all others: a router remembers what it found in the texts that came last."""
BODY = {"prompt": f"{HERE} {TEXT}", "task": "code", "metadata": {"n": 1}}
BEFORE, AFTER = json.dumps(BODY, ensure_ascii=False).encode().split(HERE.encode())
_ids = itertools.count()


@dataclass(slots=True)
class Result:
    """Latencies in milliseconds, sorted, and the rate of the run."""

    latencies_ms: list[float]
    requests_per_s: float
    failed: int = 0

    def percentile(self, share: float) -> float:
        return self.latencies_ms[min(len(self.latencies_ms) - 1, int(len(self.latencies_ms) * share))]


@dataclass(slots=True)
class Load:
    """One client of one pattern: publishes on `request`, hears `replies`."""

    nc: Client
    request: str
    replies: str
    _waiting: dict[str, tuple[float, asyncio.Future[float]]] = field(default_factory=dict)
    failed: int = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, request: str, replies: str) -> AsyncIterator["Load"]:
        nc = await nats.connect(url, name="bench load", skip_subject_validation=True)
        load = cls(nc, request, replies)
        await nc.subscribe(replies, cb=load._heard)
        await nc.flush()
        await nc.flush()
        try:
            yield load
        finally:
            await nc.close()

    async def run(self, requests: int, in_flight: int) -> Result:
        """`requests` in all, `in_flight` of them at any time."""
        latencies: list[float] = []
        left = iter(range(requests))
        self.failed = 0

        async def one_after_another() -> None:
            for _ in left:
                latencies.append(await self._one())

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(in_flight):
                tasks.create_task(one_after_another())
        took_s = time.perf_counter() - begun
        return Result(sorted(latencies), requests / took_s, self.failed)

    async def _one(self) -> float:
        n = next(_ids)
        rid, body = f"b{n}", b"%b%d%b" % (BEFORE, n, AFTER)
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[rid] = (time.perf_counter(), done)
        headers = {"Llm-Request-Id": rid, "Llm-Client": "bench", "Nats-Msg-Id": f"q{rid}"}
        await self.nc.publish(self.request, body, headers=headers)
        async with asyncio.timeout(60):
            return await done

    async def _heard(self, msg: Msg) -> None:
        sent, done = self._waiting.pop(msg.subject.rpartition(".")[2])
        self.failed += (msg.headers or {}).get("Llm-Status", "ok") != "ok"
        done.set_result((time.perf_counter() - sent) * 1000)
