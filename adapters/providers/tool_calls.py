"""Tool calls as clients send them back: OpenAI has their arguments as a string of JSON, others as an object."""

from typing import Any

from pydantic_core import from_json

from router.errors import AttemptError
from schemas.failure import FailureKind


def parsed(call: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """The id, the function's name and its arguments. Raises AttemptError when they are not what OpenAI defines."""
    try:
        name, arguments = call["function"]["name"], call["function"].get("arguments") or "{}"
        arguments = from_json(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, KeyError, TypeError, AttributeError):
        name = arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise AttemptError.of(
            FailureKind.BAD_REQUEST, "a tool call in messages needs function.name and, as JSON, function.arguments"
        )
    return str(call.get("id") or ""), name, arguments
