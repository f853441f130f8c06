"""What all messages share: frozen, tolerant coming in (unknown fields are no error), strict going out, versioned."""

from typing import Self

from pydantic import BaseModel, ConfigDict

VERSION = 1
"""The version of every message. It changes only when an old reader would misread a new message."""


class Wire(BaseModel):
    """A value that travels."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def encode(self) -> bytes:
        """Compact JSON without the fields that are None."""
        return self.__pydantic_serializer__.to_json(self, exclude_none=True)

    @classmethod
    def decode(cls, data: bytes | str) -> Self:
        """The message in `data`. Raises pydantic.ValidationError."""
        return cls.model_validate_json(data)


class Message(Wire):
    """A message that stands alone in a stream: it names its version."""

    v: int = VERSION
