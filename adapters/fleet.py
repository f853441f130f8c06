"""The nodes as they last said of themselves, and how the whole bus is: `adapters.edge.ports.Fleet`, and `llm.health`.

Whoever wants to know gathers it anew: an answer that came from a router could not say that all routers are away.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import nats.errors
import structlog
from pydantic import ValidationError

from adapters.ask import SERVICE as ASK
from adapters.bus import JetStreamBus
from router.ports import NO_HEADERS, Headers, Question
from schemas.health import BusHealth, FleetHealth, NodeHealth
from schemas.heartbeat import Health, Heartbeat
from schemas.policy import Policy
from subjects import HealthCall, NodeCall, is_token
from subjects.streams import NODES_BUCKET

log = structlog.get_logger(__name__)

SERVICE: Final = "llmbus-health"
HEARTBEATS: Final = f"$KV.{NODES_BUCKET}."
ANSWER_S: Final = 1.0
"""What is asked has this long to answer; all are asked at once."""
QUIET_S: Final = 0.05
"""No further router answers once none did for so long."""
FRESH_S: Final = 0.2
"""An answer is told again for so long: however many ask, the nodes are asked no more often."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A node's last heartbeat, and when it came (broker time)."""

    beat: Heartbeat
    at_ms: int


class Fleet:
    """One per process that wants to know. `policy`: the one in force."""

    def __init__(self, bus: JetStreamBus, policy: Callable[[], Policy]) -> None:
        self._bus = bus
        self._policy = policy
        self._heard: dict[str, Heard] = {}
        self._asking = asyncio.Lock()
        self._latest: FleetHealth | None = None
        self._latest_s = 0.0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear heartbeats: those that stand already, then each as it comes."""
        async with self._bus.listen(f"{HEARTBEATS}>", self._on_beat):
            async for letter in self._bus.read(f"KV_{NODES_BUCKET}"):
                if letter.subject.removeprefix(HEARTBEATS) not in self._heard:
                    self._note(letter.subject, letter.data, letter.timestamp_ms)
            yield

    def heard(self) -> Mapping[str, Heartbeat]:
        """By name, the nodes that are there."""
        return {name: heard.beat for name, heard in self._heard.items() if self._is_there(heard)}

    async def health(self) -> FleetHealth:
        """Within two seconds, whatever is away."""
        async with self._asking:
            if self._latest is None or time.monotonic() - self._latest_s > FRESH_S:
                self._latest = await self._gather()
                self._latest_s = time.monotonic()
            return self._latest

    async def _gather(self) -> FleetHealth:
        names = tuple(self._policy().nodes)
        if not self._bus.link().up:
            bus = BusHealth(up=False, why_not="the connection to it is lost, and is being made again")
            return fold(bus, 0, {name: away(name, "the bus is away") for name in names}, self._bus.now_ms())
        async with asyncio.TaskGroup() as tasks:
            broker, routers = tasks.create_task(self._broker()), tasks.create_task(self._routers())
            answers = {name: tasks.create_task(self._ask(name)) for name in names}
        nodes = {name: self._node(name, answer.result()) for name, answer in answers.items()}
        return fold(broker.result(), routers.result(), nodes, self._bus.now_ms())

    async def _broker(self) -> BusHealth:
        asked_s = time.monotonic()
        try:
            await self._bus.client.request("$JS.API.INFO", b"", timeout=ANSWER_S)
        except nats.errors.NoRespondersError:
            return BusHealth(up=False, why_not="its JetStream is not enabled")
        except (nats.errors.Error, TimeoutError):
            return BusHealth(up=False, why_not=f"its JetStream does not answer within {ANSWER_S:g} s")
        return BusHealth(up=True, answered_ms=round((time.monotonic() - asked_s) * 1000, 2))

    async def _routers(self) -> int:
        """How many answer, by service discovery."""
        client, found = self._bus.client, 0
        try:
            inbox = client.new_inbox()
            sub = await client.subscribe(inbox)
            try:
                await client.publish(f"$SRV.PING.{ASK}", b"", reply=inbox)
                while True:
                    answer = await sub.next_msg(QUIET_S if found else ANSWER_S)
                    if not answer.data:  # the broker's word that nobody listens
                        return found
                    found += 1
            finally:
                if not client.is_closed:
                    await sub.unsubscribe()
        except (nats.errors.Error, TimeoutError):
            return found

    async def _ask(self, name: str) -> Health | None:
        try:
            answer = await self._bus.client.request(str(NodeCall(name, "health")), b"", timeout=ANSWER_S)
            return Health.decode(answer.data)
        except (nats.errors.Error, TimeoutError, ValidationError):
            return None

    def _node(self, name: str, answer: Health | None) -> NodeHealth:
        heard = self._heard.get(name)
        ago_ms = None if heard is None else max(0, self._bus.now_ms() - heard.at_ms)
        return node_health(name, heard.beat if heard else None, ago_ms, answer, self._policy().limits.node_silent_ms)

    def _is_there(self, heard: Heard) -> bool:
        return self._bus.now_ms() - heard.at_ms <= self._policy().limits.node_silent_ms

    def _on_beat(self, subject: str, data: bytes, _headers: Headers) -> None:
        self._note(subject, data, self._bus.now_ms())

    def _note(self, subject: str, data: bytes, at_ms: int) -> None:
        node = subject.removeprefix(HEARTBEATS)
        if not is_token(node) or not data:
            return
        try:
            self._heard[node] = Heard(Heartbeat.decode(data), at_ms)
        except ValidationError as error:
            log.warning("heartbeat.unreadable", node=node, errors=error.error_count())


@asynccontextmanager
async def answering(bus: JetStreamBus, fleet: Fleet) -> AsyncIterator[None]:
    """Answer `llm.health` until the context ends; replicas share the questions."""

    async def answer(question: Question) -> None:
        await question.respond((await fleet.health()).encode(), NO_HEADERS)

    about = "How the bus is, with its routers, nodes, backends and models"
    async with bus.serve(str(HealthCall()), answer, name=SERVICE, about=about):
        yield


def node_health(
    name: str, beat: Heartbeat | None, heard_ms_ago: int | None, answer: Health | None, silent_ms: int
) -> NodeHealth:
    """A node by its last heartbeat and by what it answered just now, either of which may be missing."""
    there = heard_ms_ago is not None and heard_ms_ago <= silent_ms
    if answer is not None:
        if not there:
            passed_over = "it answers, but its heartbeats do not come, so routers pass it over"
            return _said(answer, "away", passed_over, heard_ms_ago)
        why_not = _unwell(answer)
        return _said(answer, "degraded" if answer.status == "ok" and why_not else answer.status, why_not, heard_ms_ago)
    if beat is not None and there:
        return _said(beat, "degraded", f"it is heard, but does not answer within {ANSWER_S:g} s", heard_ms_ago)
    since = "" if heard_ms_ago is None else f" for {heard_ms_ago / 1000:.0f} s"
    return away(name, f"it is not heard{since}; start it with `llmbus node {name}`", heard_ms_ago)


def away(name: str, why_not: str, heard_ms_ago: int | None = None) -> NodeHealth:
    return NodeHealth(node=name, models={}, status="away", why_not=why_not, heard_ms_ago=heard_ms_ago)


def _said(said: Heartbeat, status: str, why_not: str | None, heard_ms_ago: int | None) -> NodeHealth:
    own = {"status": status, "why_not": why_not, "heard_ms_ago": heard_ms_ago}
    return NodeHealth.model_validate(said.model_dump() | own)


def fold(bus: BusHealth, routers: int, nodes: Mapping[str, NodeHealth], as_of_ms: int | None) -> FleetHealth:
    """Everything as one answer."""
    why_not = []
    if not bus.up:
        why_not.append(f"bus: {bus.why_not}")
    elif not routers:
        why_not.append("router: none answers; start one with `llmbus router`")
    if bus.up:
        why_not += [f"node {name}: {node.why_not}" for name, node in nodes.items() if node.why_not]
    answers = bus.up and routers > 0 and any(node.takes_work for node in nodes.values())
    return FleetHealth(
        status="down" if not answers else "degraded" if why_not else "ok", why_not=tuple(why_not),
        as_of_ms=as_of_ms, bus=bus, routers=routers, nodes=dict(nodes),
    )  # fmt: skip


def _unwell(said: Health) -> str | None:
    """What is not as it should be on a node that answers."""
    words = ["it drains: it takes nothing new"] if said.draining else []
    backends = {name: state.why_not for name, state in said.backends.items() if state.why_not}
    words += [f"{name}: {why}" for name, why in backends.items()]
    models = {name: model.why_not for name, model in said.models.items() if model.why_not}
    words += [f"{name}: {why}" for name, why in models.items() if why not in backends.values()]
    if out := [name for name, model in said.models.items() if not model.usable]:
        words.append(f"not usable: {', '.join(out)}")
    if by_loopback := [name for name, model in said.models.items() if model.stand_in]:
        words.append(f"loopback stands in for {', '.join(by_loopback)}")
    return "; ".join(words) or None
