"""Vectors from any dialect: texts cut into what a call takes, answers read whole, checked, and packed for the bus."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from adapters.providers.failures import interrupted, malformed
from adapters.providers.reading import LINE_BYTES, Reading
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.base import Wire
from schemas.failure import FailureKind
from schemas.outcome import Answer
from schemas.request import Chat
from schemas.vectors import packed, unpacked
from schemas.work import Usage

TEXTS_A_CALL: Final = 256
"""Where a dialect has no lower limit of its own: what comes back stays within a line."""
PAGE_BYTES: Final = 4 * LINE_BYTES

W = TypeVar("W", bound=Wire)


class Made(NamedTuple):
    """What a call has brought."""

    vectors: Sequence[Sequence[float] | str]
    """In the order of the texts; as numbers, or packed by the server."""
    usage: Usage | None
    load_ms: float | None = None


class Vectors(Reading, Generic[W]):
    """A whole JSON object of the model `said`, of which `made` takes the vectors: nothing of it comes in pieces."""

    def __init__(self, chat: Chat, said: type[W], made: Callable[[W], Made]) -> None:
        super().__init__(Progress())
        self._count = len(chat.embed or ())
        self._dimensions = chat.dimensions
        self._said = said
        self._made = made
        self._body = bytearray()

    def line(self, line: bytes) -> None:
        self.pieces += 1
        self._body += line
        if len(self._body) > PAGE_BYTES:
            raise malformed(f"the answer is larger than {PAGE_BYTES >> 20} MB", line)

    def answer(self) -> Answer:
        body = bytes(self._body)
        try:
            made = self._made(self._said.decode(body))
            vectors = [
                (each, unpacked(each)) if isinstance(each, str) else (packed(each), each) for each in made.vectors
            ]
        except ValidationError as error:
            if "EOF while parsing" in str(error.errors(include_input=False)[0]["msg"]):
                raise interrupted("the answer ended before its JSON did") from None
            raise malformed("the answer is not vectors of this dialect", body) from None
        except ValueError as error:
            raise malformed(f"the answer has {error}", body) from None
        lengths = {len(vector) for _, vector in vectors}
        if len(vectors) != self._count or len(lengths) != 1:
            raise malformed(f"{len(vectors)} vectors of lengths {sorted(lengths)} came for {self._count} texts", body)
        if self._dimensions not in (None, length := lengths.pop()):
            why = f"its vectors have {length} numbers and cannot have {self._dimensions}: leave `dimensions` out"
            raise AttemptError.of(FailureKind.BAD_REQUEST, why)
        return Answer(embeddings=tuple(text for text, _ in vectors), usage=made.usage, load_ms=made.load_ms)


def dimensions(chat: Chat, name: str) -> dict[str, int]:
    """The wish for shorter vectors, as a dialect calls it."""
    return {} if chat.dimensions is None else {name: chat.dimensions}


async def in_batches(call: Call, most: int, ask: Callable[[Chat], Awaitable[Answer]]) -> Answer:
    """All of the call's texts, at most so many of them at a time; whole, or not at all. Raises AttemptError."""
    chat = call.chat
    texts = chat.embed or ()
    if len(texts) <= most:
        return await ask(chat)
    answers: list[Answer] = []
    for at in range(0, len(texts), most):
        try:
            answers.append(await ask(chat.model_copy(update={"embed": texts[at : at + most]})))
        except AttemptError as error:
            if not at:
                raise
            # Whatever it was: what came before it has been paid for.
            raise interrupted(f"after {at} of {len(texts)} texts: {error.failure.message}") from None
    return Answer(
        embeddings=tuple(vector for answer in answers for vector in answer.embeddings or ()),
        usage=_together([answer.usage for answer in answers]),
        load_ms=answers[0].load_ms,
    )


def _together(counted: Sequence[Usage | None]) -> Usage | None:
    """Not known as a whole when a part is not."""
    known = [usage for usage in counted if usage is not None]
    return Usage(tokens_in=sum(usage.tokens_in for usage in known)) if len(known) == len(counted) else None
