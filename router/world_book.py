"""What the router has heard: the policy in force and the nodes' heartbeats, handed out as a `World` per decision."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from router.cancels import Cancels, Key
from router.ports import Bus, Headers
from router.retry_budget import RetryBudget
from schemas.heartbeat import Heartbeat
from schemas.policy import Policy
from schemas.work import Target, WorkItem
from schemas.world import NodeView, World
from subjects import is_token
from subjects.streams import NODES_BUCKET

log = structlog.get_logger(__name__)

HEARTBEATS = f"$KV.{NODES_BUCKET}."


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """A policy and the number of its revision."""

    revision: int
    policy: Policy


class WorldBook:
    """One per router process; written by what is heard, read by every decision."""

    def __init__(self, bus: Bus, policy: PolicyInForce) -> None:
        self._bus = bus
        self._nodes: dict[str, NodeView] = {}
        self.in_force = policy
        self.cancels = Cancels(bus)
        self.retries = RetryBudget()
        self._sent: dict[str, int] = {}

    def world(self, *, received_ms: int, request_seq: int, key: Key | None = None) -> World:
        """What is known now; with the request's `key`, whether it was called off."""
        return self._world(self._bus.now_ms(), received_ms, request_seq, key, None)

    def settling(self, work: WorkItem) -> World:
        """What is known now of a request that is under way."""
        now_ms = self._bus.now_ms()
        left = self.retries.left(now_ms)
        return self._world(now_ms, work.received_ms, work.request_seq, (work.client, work.rid), left)

    def _world(
        self, as_of_ms: int, received_ms: int, request_seq: int, key: Key | None, retries_left: int | None
    ) -> World:
        linked_ms = self._bus.link().since_ms
        return World(
            as_of_ms=as_of_ms,
            received_ms=received_ms,
            linked_ms=linked_ms if linked_ms > received_ms else None,
            request_seq=request_seq,
            policy=self.in_force.revision,
            cancelled=True if key in self.cancels else None,
            retries_left=retries_left,
            sent=self._sent or None,
            nodes=self._nodes,
        )

    def sent(self, target: Target, count: int = 1) -> None:
        """Work went there, or with -1 came back. Between heartbeats a burst must not go all to the same node."""
        place = f"{target.model}@{target.node}"
        # A new dict each time: worlds that were handed out stay as they were.
        self._sent = {**self._sent, place: self._sent.get(place, 0) + count}

    @property
    def nodes(self) -> Mapping[str, NodeView]:
        return self._nodes

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear heartbeats and cancellations: those that stand already, then each as it comes."""
        async with self._bus.listen(f"{HEARTBEATS}>", self._heard), self.cancels.listening():
            async for letter in self._bus.read(f"KV_{NODES_BUCKET}"):
                if letter.subject.removeprefix(HEARTBEATS) not in self._nodes:
                    self._note(letter.subject, letter.data, letter.timestamp_ms)
            yield

    def _heard(self, subject: str, data: bytes, _headers: Headers) -> None:
        self._note(subject, data, self._bus.now_ms())

    def _note(self, subject: str, data: bytes, heard_ms: int) -> None:
        node = subject.removeprefix(HEARTBEATS)
        if not is_token(node) or not data:
            return
        try:
            beat = Heartbeat.decode(data)
        except ValidationError as error:
            log.warning("heartbeat.unreadable", node=node, errors=error.error_count())
            return
        # A new dict each time: worlds that were handed out stay as they were.
        view = NodeView(heard_ms=heard_ms, draining=beat.draining, models=beat.models)
        self._nodes = {**self._nodes, node: view}
        self._sent = {place: count for place, count in self._sent.items() if not place.endswith(f"@{node}")}
