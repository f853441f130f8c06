"""One attempt: a provider's call under the request's deadline, timed, its pieces sent on as they come."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import structlog

from router.core.tokens import BYTES_PER_TOKEN, estimate_tokens
from router.errors import AttemptError, one_error
from router.ports import Bus, Call, Embedder, Progress, Provider, ToolCallPiece
from schemas import headers as h
from schemas.chunk import Chunk, ToolCallChunk
from schemas.failure import Failure, FailureKind
from schemas.outcome import Answer, AttemptTimings
from schemas.request import Chat
from schemas.work import Usage, WorkItem, attempt_id
from subjects import Chunk as ChunkSubject

log = structlog.get_logger(__name__)

FIRST = attempt_id(1, 1)


@dataclass(slots=True)
class Served:
    """A model as its node serves it right now; replaced when a probe finds something else."""

    provider: Provider
    provider_name: str
    stand_in: bool = False
    why_not: str | None = None
    """Why it cannot be used, and what to do; beside a stand-in: why the model itself cannot."""

    @property
    def usable(self) -> bool:
        return self.stand_in or self.why_not is None


@dataclass(slots=True)
class Tried:
    """What came of a call: an answer or a failure, and when."""

    begun_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    ended_s: float = 0.0
    answer: Answer | None = None
    failure: Failure | None = None
    partial: Usage | None = None
    """What a failed call has used as far as it got, estimated."""
    bytes_out: int = 0
    pieces: int = 0

    @property
    def tokens_per_s(self) -> float | None:
        """How fast the model wrote: after its first piece where there were several, else the loading left out."""
        if self.answer is None or self.answer.usage is None or self.first_token_s is None:
            return None
        seconds = self.ended_s - self.first_token_s
        if self.pieces < 2:
            seconds = self.ended_s - self.begun_s - (self.answer.load_ms or 0) / 1000
        return self.answer.usage.tokens_out / seconds if seconds > 0 else None

    def timings(self, *, queue_ms: float) -> AttemptTimings:
        first_s = self.first_token_s
        return AttemptTimings(
            queue_ms=queue_ms,
            load_ms=self.answer.load_ms if self.answer else None,
            first_token_ms=None if first_s is None else round((first_s - self.begun_s) * 1000, 3),
            total_ms=round((self.ended_s - self.begun_s) * 1000, 3),
        )


class Recall:
    """The means to end a delivery early, whatever it is waiting for."""

    def __init__(self) -> None:
        self.called_off = False
        self._limit: asyncio.Timeout | None = None

    def now(self) -> None:
        self.called_off = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(0)

    @asynccontextmanager
    async def within(self, seconds: float | None) -> AsyncIterator[None]:
        """Raises TimeoutError at the recall, or when the time is over."""
        async with asyncio.timeout(0 if self.called_off else seconds) as self._limit:
            try:
                yield
            finally:
                self._limit = None


async def call(bus: Bus, served: Served, work: WorkItem, attempt: str, left_s: float, recall: Recall) -> Tried:
    """Call the provider, for at most `left_s`; whatever it does, there is an answer or a classified failure."""
    target = work.target
    asked = Call(
        backend=target.backend,
        chat=work.chat,
        first_token_ms=target.first_token_ms,
        idle_ms=target.idle_ms,
        stands_in_for=target.backend if served.stand_in else None,
    )
    tried = Tried()
    try:
        async with recall.within(left_s):
            if work.chat.embed is not None:
                tried.answer = await _embedded(served, asked)
            elif work.chat.stream:
                async with _streaming(bus, served.provider_name, work, attempt, tried) as progress:
                    tried.answer = await served.provider.chat(asked, progress)
            else:
                tried.answer = await served.provider.chat(asked, _noting(tried))
    except AttemptError as error:
        tried.failure = error.failure
    except TimeoutError:
        tried.failure = (
            Failure(kind=FailureKind.CANCELLED, message="its client called it off while the model was answering")
            if recall.called_off
            else Failure(kind=FailureKind.DEADLINE, message="its time ran out while the model was answering")
        )
    except Exception as error:
        log.exception("attempt.failed", rid=work.rid, node=target.node, model=target.model)
        message = f"{type(error).__name__} in provider {served.provider_name}; see the node's log"
        tried.failure = Failure(kind=FailureKind.INTERNAL, message=message)
    tried.ended_s = time.monotonic()
    if tried.answer is None:
        tried.partial = _estimated(work.chat, tried.bytes_out)
    elif tried.answer.usage is None:
        tried.answer = tried.answer.model_copy(update={"usage": _estimated(work.chat, tried.bytes_out)})
    return tried


async def _embedded(served: Served, asked: Call) -> Answer:
    if not isinstance(served.provider, Embedder):
        raise AttemptError.of(FailureKind.UNSUPPORTED, f"{served.provider_name} has no embeddings")
    return await served.provider.embed(asked)


def _estimated(chat: Chat, bytes_out: int) -> Usage:
    """The provider did not say: counted by rule, and marked as such."""
    tokens_in = estimate_tokens(chat.texts())
    return Usage(tokens_in=tokens_in, tokens_out=-(-bytes_out // BYTES_PER_TOKEN), estimated=True)


def _noting(tried: Tried) -> Progress:
    def note(text: str) -> None:
        if tried.first_token_s is None:
            tried.first_token_s = time.monotonic()
        tried.bytes_out += len(text.encode())
        tried.pieces += 1

    return Progress(on_text=note, on_reasoning=note, on_tool_call=lambda piece: note(piece.arguments))


@asynccontextmanager
async def _streaming(bus: Bus, provider: str, work: WorkItem, attempt: str, tried: Tried) -> AsyncIterator[Progress]:
    """Number the pieces and send each as a chunk, in order; leaving waits until the last one is sent.

    Any attempt but the first is announced by an empty piece 0: who watches knows at once that it starts over.
    """
    noting = _noting(tried)
    pieces: asyncio.Queue[Chunk | None] = asyncio.Queue()
    numbers = count()
    headers = {h.ATTEMPT: attempt}
    subject = str(ChunkSubject(work.client, work.rid, 0)).removesuffix("0")
    who = {"model": work.target.model, "node": work.target.node, "provider": provider}

    def put(**content: Any) -> None:
        n = next(numbers)
        chunk = Chunk(request_id=work.rid, attempt_id=attempt, n=n, **content)
        pieces.put_nowait(chunk if n else chunk.model_copy(update=who))

    def on_text(piece: str) -> None:
        noting.on_text(piece)
        put(text=piece)

    def on_reasoning(piece: str) -> None:
        noting.on_reasoning(piece)
        put(reasoning=piece)

    def on_tool_call(piece: ToolCallPiece) -> None:
        noting.on_tool_call(piece)
        put(tool_call=ToolCallChunk(index=piece.index, arguments=piece.arguments, id=piece.id, name=piece.name))

    def on_thinking_block(block: dict[str, Any]) -> None:
        put(thinking_block=block)

    async def send() -> None:
        while (chunk := await pieces.get()) is not None:
            await bus.tell(f"{subject}{chunk.n}", chunk.encode(), headers=headers)

    with one_error():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            if attempt != FIRST:
                put()
            try:
                yield Progress(on_text, on_reasoning, on_tool_call, on_thinking_block)
            finally:
                pieces.put_nowait(None)
