"""A numbered piece of a streamed answer, `llm.chunk.<client>.<rid>.<n>`. Best effort; the reply is whole."""

from schemas.base import Message


class Chunk(Message):
    """Pieces of one attempt are numbered 0, 1, 2, ...; another `attempt_id` means the answer starts over."""

    request_id: str
    attempt_id: str
    n: int
    text: str = ""
    reasoning: str | None = None
