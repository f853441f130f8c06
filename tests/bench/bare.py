"""The bare pattern: the same hops as one request takes through llmbus, with no logic at all, written for speed.

publish -> pull -> publish work -> pull -> publish outcome -> pull -> publish reply. Callbacks only, one long pull each,
pipelined publishes with an inbox of their own, every message acknowledged once its successor is stored.

    python -m tests.bench.bare router|executor NATS_URL
"""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable

import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

BATCH = 256
STREAMS = {
    "BARE_REQUESTS": {"subjects": ["bare.req.*"], "retention": "limits"},
    "BARE_WORK": {"subjects": ["bare.work.>"], "retention": "workqueue"},
    "BARE_OUTCOMES": {"subjects": ["bare.out.>"], "retention": "workqueue"},
    "BARE_REPLIES": {"subjects": ["bare.res.*.*"], "retention": "limits"},
}


async def provision(nc: Client) -> None:
    """Streams and consumers of the bare pattern."""
    for name, config in STREAMS.items():
        body = {"name": name, "storage": "file", "num_replicas": 1, "duplicate_window": 120 * 10**9, **config}
        await nc.request(f"$JS.API.STREAM.CREATE.{name}", json.dumps(body).encode(), timeout=5)
        consumer = {
            "stream_name": name,
            "config": {"durable_name": "bench", "ack_policy": "explicit", "max_ack_pending": 4096},
        }
        if name != "BARE_REPLIES":
            await nc.request(f"$JS.API.CONSUMER.CREATE.{name}.bench", json.dumps(consumer).encode(), timeout=5)


class Hop:
    """Takes messages from one stream and publishes what `forward` makes of each into the next."""

    def __init__(self, nc: Client, stream: str, forward: Callable[[Msg], tuple[str, dict[str, str]]]) -> None:
        self._nc = nc
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.bench"
        self._forward = forward
        self._inbox = nc.new_inbox()
        self._acks = nc.new_inbox()
        self._unacked: dict[str, str] = {}
        self._count = 0
        self._open = 0

    async def start(self) -> None:
        await self._nc.subscribe(f"{self._acks}.*", cb=self._stored)
        await self._nc.subscribe(self._inbox, cb=self._received)
        await self._pull()

    async def _pull(self) -> None:
        want = BATCH - self._open
        self._open = BATCH
        ask = json.dumps({"batch": want, "expires": 30 * 10**9}).encode()
        await self._nc.publish(self._next, ask, reply=self._inbox)

    async def _received(self, msg: Msg) -> None:
        if not msg.reply:
            self._open = 0
            await self._pull()
            return
        subject, headers = self._forward(msg)
        self._count += 1
        key = str(self._count)
        self._unacked[key] = msg.reply
        await self._nc.publish(subject, msg.data, reply=f"{self._acks}.{key}", headers=headers)
        self._open -= 1
        if self._open <= BATCH // 2:
            await self._pull()

    async def _stored(self, msg: Msg) -> None:
        await self._nc.publish(self._unacked.pop(msg.subject.rpartition(".")[2]), b"+ACK")


def _to(subject: str, kind: str) -> Callable[[Msg], tuple[str, dict[str, str]]]:
    def forward(msg: Msg) -> tuple[str, dict[str, str]]:
        rid = (msg.headers or {})["Llm-Request-Id"]
        return f"{subject}.{rid}", {"Llm-Request-Id": rid, "Nats-Msg-Id": f"{kind}{rid}"}

    return forward


async def run(role: str, url: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    nc = await nats.connect(url, name=f"bare {role}", skip_subject_validation=True)
    hops = {
        "router": [
            Hop(nc, "BARE_REQUESTS", _to("bare.work.node.echo.normal", "w")),
            Hop(nc, "BARE_OUTCOMES", _to("bare.res.bench", "r")),
        ],
        "executor": [Hop(nc, "BARE_WORK", _to("bare.out.node", "o"))],
    }[role]
    for hop in hops:
        await hop.start()
    await stop.wait()
    await nc.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run(sys.argv[1], sys.argv[2]))
