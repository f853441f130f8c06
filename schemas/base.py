"""What all messages share: frozen, tolerant coming in (unknown fields are no error), strict going out, versioned."""

from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

VERSION = 1
"""The version of every message. It changes only when an old reader would misread a new message."""


@dataclass(frozen=True, slots=True)
class FirstFault:
    """pydantic's own `FailFast` has no hash, so it cannot stand in a union."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return {**handler(source), "fail_fast": True}


FIRST_FAULT: Final = FirstFault()
"""Of what is wrong in a list only the first is told: to tell 50,000 faults takes far longer than to read them."""


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
