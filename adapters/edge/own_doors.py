"""The users' own doors: `POST /route`, `/architect`, `/coder`, `/reviewer` and `/api/chat`, plain or streamed.

A stream is `piece` events with text, then one `reply` with what the plain answer would have been, or one `error`.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import to_json

from adapters.edge import sse
from adapters.edge.door import Asked, NoRouteError, Shape, placed
from adapters.edge.errors import error_body
from adapters.edge.fleet_doors import memory_gb
from adapters.edge.ports import Fleet
from adapters.edge.wishes import Wishes, request, with_preferences
from schemas.chunk import Chunk
from schemas.failure import Error
from schemas.policy import Policy
from schemas.reply import Reply
from subjects.grammar import URGENCIES, Urgency

URGENCY_WORDS: Final = {"low": "batch"}
"""The users' words for what the bus calls otherwise."""


def _urgency(word: Any) -> Any:
    return URGENCY_WORDS.get(word, word) if isinstance(word, str) else word


class OwnRequest(Wishes):
    """What the doors have in common."""

    urgency: Annotated[
        Urgency, BeforeValidator(_urgency), WithJsonSchema({"enum": [*URGENCIES, *URGENCY_WORDS], "type": "string"})
    ] = "normal"
    context: str | dict[str, Any] | list[Any] | None = None
    """Joined before the prompt; what is no text, as JSON."""
    stream: bool = False
    metadata: dict[str, Any] | None = None

    def context_text(self) -> str | None:
        return self.context if isinstance(self.context, str | None) else to_json(self.context).decode()


class RouteRequest(OwnRequest):
    model_config = ConfigDict(
        frozen=True, extra="ignore",
        json_schema_extra={"examples": [{"prompt": "함수를 하나 써 줘", "task_type": "code", "urgency": "high"}]},
    )  # fmt: skip

    prompt: str
    task_type: str | None = None
    model: str | None = None
    """Of `/route` only: an alias, a model or a capability of the policy, or `auto`."""
    max_tokens: int | None = None
    temperature: float | None = None


class ApiChatRequest(OwnRequest):
    model_config = ConfigDict(
        frozen=True, extra="ignore",
        json_schema_extra={"examples": [{"agent": "npc-ai", "task": "review", "message": "상인을 소개해 줘"}]},
    )  # fmt: skip

    message: str


class Route:
    """`/route`; with a `role`, the door of the policy's model that has it."""

    shape: Shape = "native"

    def __init__(self, fleet: Fleet, policy: Callable[[], Policy], role: str | None = None) -> None:
        self._fleet = fleet
        self._policy = policy
        self._role = role

    def read(self, body: bytes, headers: Mapping[str, str], policy: Policy) -> Asked:
        said = RouteRequest.said(body, headers)
        capability, model = placed(said.model, said, policy)
        if self._role is not None:
            model = _of_role(self._role, said.model, policy)
        asked = request(
            said, prompt=said.prompt, context=said.context_text(), task=said.task_type or said.task, model=model,
            preferences=with_preferences(said, {"max_tokens": said.max_tokens, "temperature": said.temperature}),
            stream=said.stream and not said.buffered, metadata=said.metadata,
        )  # fmt: skip
        return Asked(asked, capability, sse=said.stream)

    def answer(self, asked: Asked, reply: Reply) -> dict[str, Any]:
        answer = {
            "model": reply.model,
            "agent": reply.agent_role or asked.request.agent,
            "response": reply.message.content if reply.message else "",
            "tokens_generated": reply.usage.tokens_out if reply.usage else None,
            "latency_ms": reply.timings.total_ms,
            "memory_used_gb": self._memory_gb(reply),
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": reply.request_id,
        }
        return answer | ({"notice": reply.notice} if reply.notice else {})

    def speech(self, asked: Asked, rid: str) -> "OwnSpeech":
        return OwnSpeech(lambda reply: self.answer(asked, reply))

    def _memory_gb(self, reply: Reply) -> float | None:
        """What the model that answered takes on its node; nothing where loopback stood in for it."""
        name = reply.model or ""
        model, node = self._policy().models.get(name), self._fleet.heard().get(reply.node or "")
        if model is None:
            return None
        if reply.notice:
            return 0.0
        return memory_gb(model, node.models.get(name) if node else None)


class ApiChat:
    """`/api/chat`, the face that agents already call."""

    shape: Shape = "native"

    def read(self, body: bytes, headers: Mapping[str, str], policy: Policy) -> Asked:
        said = ApiChatRequest.said(body, headers)
        capability, _ = placed(None, said, policy)
        asked = request(
            said, prompt=said.message, context=said.context_text(), preferences=with_preferences(said, {}),
            stream=said.stream and not said.buffered, metadata=said.metadata,
        )  # fmt: skip
        return Asked(asked, capability, sse=said.stream)

    def answer(self, asked: Asked, reply: Reply) -> dict[str, Any]:
        usage = reply.usage
        answer = {
            "model_used": reply.model,
            "response": reply.message.content if reply.message else "",
            "request_id": reply.request_id,
            "metadata": {
                "cost": None if reply.cost_usd is None else float(reply.cost_usd),
                "response_time": reply.timings.total_ms / 1000,
                "tokens_used": usage.tokens_in + usage.tokens_out if usage else None,
                "provider": reply.provider,
                "node": reply.node,
                "decision": reply.decision,
            },
        }
        return answer | ({"notice": reply.notice} if reply.notice else {})

    def speech(self, asked: Asked, rid: str) -> "OwnSpeech":
        return OwnSpeech(lambda reply: self.answer(asked, reply))


class OwnSpeech:
    """`piece`s, then `reply` or `error`."""

    ping = sse.PING

    def __init__(self, answer: Callable[[Reply], dict[str, Any]]) -> None:
        self._answer = answer

    def piece(self, chunk: Chunk) -> bytes:
        said = {"text": chunk.text} | ({"reasoning": chunk.reasoning} if chunk.reasoning else {})
        return sse.event(said, name="piece")

    def end(self, reply: Reply) -> bytes:
        return sse.event(self._answer(reply), name="reply")

    def error(self, error: Error, status: int) -> bytes:
        return sse.event(error_body(error, status, "native"), name="error")


def _of_role(role: str, named: str | None, policy: Policy) -> str:
    """The policy's first model with that role. Raises NoRouteError, ValueError."""
    if named is not None:
        raise ValueError(f"/{role} has its own model; leave `model` out, or ask /route for {named[:64]!r}")
    for name, model in policy.models.items():
        if model.role == role:
            return name
    raise NoRouteError(f"no model of the policy has `role: {role}`; give it to one, or ask /route")
