"""OpenAI's `POST /v1/embeddings`: a vector for each text."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from adapters.edge import sse
from adapters.edge.door import Asked, Shape, placed
from adapters.edge.errors import error_body
from adapters.edge.wishes import Wishes, request
from schemas.chunk import Chunk
from schemas.failure import Error
from schemas.policy import Policy
from schemas.reply import Reply
from schemas.request import Texts
from schemas.vectors import unpacked

CAPABILITY = "embed"
"""Where texts go that name no model."""


class EmbeddingsRequest(Wishes):
    """What is not here is kept out: an unknown field is no error."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra={"required": ["input"]})

    model: str | None = None
    """An alias, a model or a capability of the policy, a backend's own name, or `auto`."""
    input: str | Texts = Field(description="A text, or up to 2048 of them; none may be empty.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    metadata: dict[str, Any] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(each, int | list) for each in value):
            raise ValueError(
                "tokens are not taken, for every model counts its own: send the texts "
                "(LangChain: check_embedding_ctx_length=False)"
            )
        return value


class Embeddings:
    """The door."""

    shape: Shape = "openai"

    def read(self, body: bytes, headers: Mapping[str, str], policy: Policy) -> Asked:
        said = EmbeddingsRequest.said(body, headers)
        capability, model = placed(said.model, said, policy, CAPABILITY)
        asked = request(
            said, embed=[said.input] if isinstance(said.input, str) else said.input, dimensions=said.dimensions,
            model=model, preferences=said.preferences.model_dump(exclude_none=True), metadata=said.metadata,
        )  # fmt: skip
        return Asked(asked, capability, model=said.model or "auto", base64=said.encoding_format == "base64")

    def answer(self, asked: Asked, reply: Reply) -> dict[str, Any]:
        vectors = reply.embeddings or ()
        tokens_in = reply.usage.tokens_in if reply.usage else 0
        said = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": at, "embedding": text if asked.base64 else unpacked(text)}
                for at, text in enumerate(vectors)
            ],
            "model": reply.model,
            "usage": {"prompt_tokens": tokens_in, "total_tokens": tokens_in},
        }
        # Words can say for themselves that no model wrote them; vectors cannot.
        return said if reply.notice is None else {**said, "notice": reply.notice}

    def speech(self, asked: Asked, rid: str) -> "Silence":
        return Silence()


class Silence:
    """Vectors are never streamed: there is nothing to say but an error."""

    ping = sse.PING

    def piece(self, chunk: Chunk) -> bytes:
        return b""

    def end(self, reply: Reply) -> bytes:
        return b""

    def error(self, error: Error, status: int) -> bytes:
        return sse.event(error_body(error, status, "openai"))
