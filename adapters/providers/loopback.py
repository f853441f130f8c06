"""Answers without a model, from the request itself, and says so plainly; for machines and tests that have none.

Its vectors are made of a hash of each text: equal texts have equal ones, and their nearness means nothing.

`metadata.loopback` of a request tells it how to behave: see `Told`.
"""

import asyncio
import os
import struct
from collections.abc import Collection, Iterable
from hashlib import shake_256
from math import hypot
from typing import Final, Self

from pydantic import Field, ValidationError

from adapters.providers import Setup
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.base import Wire
from schemas.failure import FailureKind
from schemas.outcome import Answer
from schemas.request import Chat
from schemas.vectors import packed
from schemas.work import Usage

CHARS_A_TOKEN: Final = 4
OPENING_WORDS: Final = 12
OPENING_CHARS: Final = 160
DIMENSIONS: Final = 256


class Told(Wire):
    """How a client wants a loopback to behave."""

    delay_ms: int = Field(default=0, ge=0)
    """Before the first piece."""
    pieces: int = Field(default=1, ge=1)
    """The number of pieces that the answer comes in, as far as it has characters."""
    piece_ms: int = Field(default=0, ge=0)
    """Between two pieces."""
    text: str | None = None
    """The answer, word for word."""
    fail: FailureKind | None = None
    """Fail like this in place of an answer."""
    crash: bool = False
    """Take the process down."""


NOTHING: Final = Told()


class Loopback:
    """No model. `models` are the names that it stands for."""

    def __init__(self, models: Collection[str] = (), *, allow_crash: bool = False) -> None:
        self._models = models
        self._allow_crash = allow_crash

    @classmethod
    def of(cls, setup: Setup) -> Self:
        return cls(tuple(setup.models), allow_crash=setup.allow_crash)

    async def chat(self, call: Call, progress: Progress) -> Answer:
        chat = call.chat
        told = await self._obey(chat) if chat.metadata and "loopback" in chat.metadata else NOTHING
        text = _text(call) if told.text is None else told.text
        for n, piece in enumerate(_pieces(text, told.pieces)):
            if n and told.piece_ms:
                await asyncio.sleep(told.piece_ms / 1000)
            progress.on_text(piece)
        return Answer(text=text, usage=usage_of(chat, text))

    async def embed(self, call: Call) -> Answer:
        chat = call.chat
        if chat.metadata and "loopback" in chat.metadata:
            await self._obey(chat)
        texts = chat.texts()
        counted = Usage(tokens_in=sum(_tokens(len(text)) for text in texts))
        return Answer(embeddings=tuple(_vector(text, chat.dimensions or DIMENSIONS) for text in texts), usage=counted)

    async def _obey(self, chat: Chat) -> Told:
        told = _told(chat)
        if told.crash and self._allow_crash:
            os._exit(1)
        if told.crash:
            raise AttemptError.of(FailureKind.UNSUPPORTED, "this loopback may not be crashed")
        if told.delay_ms:
            await asyncio.sleep(told.delay_ms / 1000)
        if told.fail is not None:
            raise AttemptError.of(told.fail, "this loopback was told to fail")
        return told

    async def probe(self) -> dict[str, str | None]:
        return dict.fromkeys(self._models)

    async def aclose(self) -> None:
        """Nothing is open."""


def usage_of(chat: Chat, text: str) -> Usage:
    """Counted by a rule, as there is no tokenizer: four characters a token, rounded up, at least one."""
    return Usage(tokens_in=_tokens(sum(len(turn.text()) for turn in chat.messages)), tokens_out=_tokens(len(text)))


def _vector(text: str, dimensions: int) -> str:
    """Of length 1, packed."""
    numbers = struct.unpack(f"<{dimensions}h", shake_256(text.encode()).digest(2 * dimensions))
    length = hypot(*numbers) or 1.0
    return packed([number / length for number in numbers])


def _tokens(chars: int) -> int:
    return max(1, -(-chars // CHARS_A_TOKEN))


def _told(chat: Chat) -> Told:
    try:
        return Told.model_validate((chat.metadata or {})["loopback"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(("metadata", "loopback", *map(str, first["loc"])))
        raise AttemptError.of(FailureKind.BAD_REQUEST, f"{where}: {first['msg']}") from None


def _text(call: Call) -> str:
    asked = next((turn.text() for turn in reversed(call.chat.messages) if turn.role == "user"), "")
    instead = f"; standing in for {call.stands_in_for}" if call.stands_in_for else ""
    return f"[loopback: no model answered{instead}] {_opening(asked)}".rstrip()


def _opening(text: str) -> str:
    """The first words. Cut between words: within one, a Korean syllable or an emoji could fall apart."""
    words = text[:OPENING_CHARS].split()
    if len(text) > OPENING_CHARS and len(words) > 1:
        words.pop()
    return " ".join(words[:OPENING_WORDS])


def _pieces(text: str, count: int) -> Iterable[str]:
    if count == 1:
        return (text,)
    count = min(count, len(text))
    return (text[len(text) * n // count : len(text) * (n + 1) // count] for n in range(count))
