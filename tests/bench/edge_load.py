"""The client of the edge's benchmark: HTTP/1.1 by hand on connections that are kept, so that it costs little itself."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final, cast

from tests.bench.edge_upstream import FIRST, LAST
from tests.bench.load import PROMPT

PROMPT_BYTES: Final = 1500
ANSWER_S: Final = 60
_HERE: Final = b"00000000"
"""Where each request differs from all others: gateways remember things."""
_TEXT: Final = f"{_HERE.decode()} " + (PROMPT * 20).encode()[:PROMPT_BYTES].decode(errors="ignore")
_numbers: Final = count(1)


@dataclass(frozen=True, slots=True)
class Target:
    """Where chat completions are to be had."""

    port: int
    path: str = "/v1/chat/completions"
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self, model: str, *, stream: bool) -> bytes:
        said = {"model": model, "messages": [{"role": "user", "content": _TEXT}], "stream": stream}
        body = json.dumps(said, ensure_ascii=False).encode()
        headers = {
            "host": f"127.0.0.1:{self.port}", "content-type": "application/json", "content-length": str(len(body)),
            **self.headers,
        }  # fmt: skip
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


@dataclass(slots=True)
class Run:
    """What came of so many requests; milliseconds."""

    whole_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    """To the first token, of streams too that came in one piece."""
    took_s: float = 0.0
    failed: list[str] = field(default_factory=list)

    def add(self, other: "Run") -> None:
        self.whole_ms += other.whole_ms
        self.first_ms += other.first_ms
        self.took_s += other.took_s
        self.failed += other.failed

    @property
    def per_s(self) -> float:
        return len(self.whole_ms) / self.took_s


def at(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Caller(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._read = bytearray()
        self._end: bytes | None = None
        self._length: int | None = None
        self._first_s: float | None = None
        self._done: asyncio.Future[float | None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, port: int) -> AsyncIterator["Caller"]:
        transport, caller = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        try:
            yield caller
        finally:
            transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionResetError("closed within the answer"))

    def data_received(self, data: bytes) -> None:
        self._read += data
        if self._first_s is None and FIRST in self._read:
            self._first_s = time.perf_counter()
        if self._length is None and self._end is None:
            head, blank, _ = self._read.partition(b"\r\n\r\n")
            if not blank:
                return
            lines = bytes(head).lower().split(b"\r\n")
            said = next((line[15:] for line in lines if line.startswith(b"content-length:")), None)
            self._end = b"0\r\n\r\n" if said is None else None
            self._length = None if said is None else len(head) + 4 + int(said)
        whole = self._read.endswith(self._end) if self._end else len(self._read) == self._length
        if whole and self._done is not None and not self._done.done():
            self._done.set_result(self._first_s)

    async def ask(self, request: bytes, run: Run) -> None:
        """One answer, whole and right, counted in `run`."""
        self._read.clear()
        self._end = self._length = self._first_s = None
        self._done = asyncio.get_running_loop().create_future()
        begun = time.perf_counter()
        self._transport.write(request.replace(_HERE, b"%08d" % next(_numbers), 1))
        async with asyncio.timeout(ANSWER_S):
            first_s = await self._done
        ended = time.perf_counter()
        streamed = b"text/event-stream" in self._read
        if not self._read.startswith(b"HTTP/1.1 200") or LAST not in self._read or (
            streamed and b"[DONE]" not in self._read
        ):  # fmt: skip
            run.failed.append(self._read[:400].decode(errors="replace"))
            return
        run.whole_ms.append((ended - begun) * 1000)
        if first_s is not None:
            run.first_ms.append((first_s - begun) * 1000)


async def load(target: Target, model: str, *, stream: bool, requests: int, in_flight: int) -> Run:
    """`requests` in all, `in_flight` of them at any time, each place a connection."""
    run, request, left = Run(), target.request(model, stream=stream), iter(range(requests))

    async def place(ready: asyncio.Barrier) -> None:
        async with Caller.open(target.port) as caller:
            await ready.wait()
            for _ in left:
                await caller.ask(request, run)

    ready = asyncio.Barrier(in_flight + 1)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(in_flight):
            tasks.create_task(place(ready))
        await ready.wait()
        begun = time.perf_counter()
    run.took_s = time.perf_counter() - begun
    return run
