"""The router's own fields, which any door takes beside its dialect's: in the body, or as `x-llm-*` headers."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from schemas.request import Constraints, LlmRequest, Preferences
from subjects.grammar import Urgency

PREFIX = "x-llm-"
OBJECTS = frozenset({"constraints", "preferences"})
"""Of which the header holds JSON."""


class Wishes(BaseModel):
    """What a request may say to the router."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    capability: str | None = None
    """What is needed, where `model` names nobody: a capability of the policy."""
    agent: str | None = None
    """Who asks, for the policy's preferences of agents and for the audit."""
    task: str | None = None
    """What kind of task it is, for the policy's rules."""
    urgency: Urgency = "normal"
    """The urgent go first."""
    deadline_ms: int | None = None
    """When the answer is of no use any more, in ms from the request's acceptance; at most 30 minutes."""
    constraints: Constraints = Constraints()
    """What cannot be bent; in a header as JSON."""
    preferences: Preferences = Preferences()
    """How it is best done; in a header as JSON."""
    buffered: bool = False
    """Of a stream: begin it only when the whole answer is there, so that any failure before is mended unseen."""

    @classmethod
    def said(cls, body: bytes, headers: Mapping[str, str]) -> Self:
        """What the body says; what it does not, the headers may. Raises pydantic.ValidationError, ValueError."""
        if not body:
            raise ValueError("the body is empty; send a JSON object, see /docs")
        said = cls.model_validate_json(body)
        if given := _from_headers(headers):
            said = cls.model_validate(given | said.model_dump(exclude_unset=True))
        return said


def _from_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    """The fields that headers give. Raises ValueError for JSON that is none."""
    given: dict[str, Any] = {}
    for field in Wishes.model_fields:
        if (value := headers.get(PREFIX + field.replace("_", "-"))) is not None:
            given[field] = _object(field, value) if field in OBJECTS else value
    return given


def _object(field: str, value: str) -> Any:
    try:
        return from_json(value)
    except ValueError as error:
        raise ValueError(f"the header {PREFIX}{field} holds no JSON: {error}") from None


def with_preferences(wishes: Wishes, dialect: dict[str, Any]) -> dict[str, Any]:
    """What the dialect's own fields say goes before what `preferences` say; None says nothing."""
    own = wishes.preferences.model_dump(exclude_none=True)
    return {**own, **{name: value for name, value in dialect.items() if value is not None}}


def request(wishes: Wishes, **fields: Any) -> LlmRequest:
    """A request of the bus from what a dialect said and what was wished. Raises pydantic.ValidationError."""
    said = {
        "agent": wishes.agent,
        "task": wishes.task,
        "urgency": wishes.urgency,
        "deadline_ms": wishes.deadline_ms,
        "constraints": wishes.constraints.model_dump(exclude_defaults=True),
        **fields,
    }
    return LlmRequest.model_validate({name: value for name, value in said.items() if value is not None})
