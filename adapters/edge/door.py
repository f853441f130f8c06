"""What a door is: translations between one HTTP dialect and the bus. Pure; `exchange.py` does all the rest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from adapters.edge.wishes import Wishes
from schemas.chunk import Chunk
from schemas.failure import Error
from schemas.policy import Policy
from schemas.reply import Reply
from schemas.request import LlmRequest

Shape = Literal["openai", "anthropic", "native"]
"""How errors look."""

DEFAULT_CAPABILITY = "chat"
ANY_MODEL = frozenset({"auto", "default", ""})


class NoRouteError(ValueError):
    """Nobody of the policy can take it, by what a door alone knows: its answer is a 404."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a door has read it."""

    request: LlmRequest
    capability: str
    sse: bool = False
    """Answered as a stream; the request itself asks for pieces only if it need not be buffered."""
    model: str = ""
    """As the client named it, for answers that must repeat it before anybody has answered."""
    with_usage: bool = False
    """A stream that ends with its usage."""
    echo: Mapping[str, Any] = field(default_factory=dict)
    """What an answer repeats of what was asked, in the dialect's own form."""
    base64: bool = False
    """Vectors go out as they travel, not as numbers."""


class Speech(Protocol):
    """Writes one streamed answer in server-sent events; its calls come in this order."""

    ping: bytes
    """What says that it lives, at any time."""

    def piece(self, chunk: Chunk) -> bytes:
        """A piece of the answer, any number of times; never one without content."""

    def end(self, reply: Reply) -> bytes:
        """The end of a whole answer."""

    def error(self, error: Error, status: int) -> bytes:
        """The end of an answer that is not whole, whatever was said before."""


class Door(Protocol):
    """One endpoint's dialect."""

    shape: Shape

    def read(self, body: bytes, headers: Mapping[str, str], policy: Policy) -> Asked:
        """Raises pydantic.ValidationError, and ValueError that says what would be right; NoRouteError."""

    def answer(self, asked: Asked, reply: Reply) -> Any:
        """The JSON body of a whole answer."""

    def speech(self, asked: Asked, rid: str) -> Speech:
        """What writes it as a stream."""


def placed(
    model: str | None, wishes: Wishes, policy: Policy, default: str = DEFAULT_CAPABILITY
) -> tuple[str, str | None]:
    """The capability that a request goes to, and the model that it names there, if any.

    What a client calls a model may be a capability too; a policy's model or alias of the same name goes before it.
    """
    if model is None or model in ANY_MODEL:
        return wishes.capability or default, None
    if model in policy.capabilities and model not in policy.models and model not in policy.aliases:
        return model, None
    return wishes.capability or default, model
