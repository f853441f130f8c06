"""A numbered piece of a streamed answer, `llm.chunk.<client>.<rid>.<n>`. Best effort; the reply is whole."""

from typing import Any

from schemas.base import Message, Wire


class ToolCallChunk(Wire):
    """A piece of a tool call; `id` and `name` come with its first piece."""

    index: int
    """Which call of the answer, from 0."""
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class Chunk(Message):
    """Pieces of one attempt are numbered 0, 1, 2, ...; another `attempt_id` means the answer starts over.

    Every attempt but a request's first is announced: its piece 0 is empty and comes before it calls anybody.
    """

    request_id: str
    attempt_id: str
    n: int
    text: str = ""
    reasoning: str | None = None
    tool_call: ToolCallChunk | None = None
    thinking_block: dict[str, Any] | None = None
    """A record of thinking that is whole now, as the reply will have it; its words have come as `reasoning`."""
    model: str | None = None
    """Who answers, told by piece 0 of an attempt; its name in the policy."""
    node: str | None = None
    provider: str | None = None
