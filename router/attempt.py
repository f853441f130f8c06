"""One attempt: a provider's call under the request's deadline, timed, its pieces sent on as they come."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from router.errors import AttemptError, one_error
from router.ports import Bus, Call, Progress, Provider
from schemas.chunk import Chunk
from schemas.failure import Failure, FailureKind
from schemas.outcome import Answer, AttemptTimings
from schemas.work import WorkItem
from subjects import Chunk as ChunkSubject

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Served:
    """A model as its node serves it right now; replaced when a probe finds something else."""

    provider: Provider
    provider_name: str
    stand_in: bool = False
    why_not: str | None = None
    """Why it cannot be used, and what to do."""


@dataclass(slots=True)
class Tried:
    """What came of a call: an answer or a failure, and when."""

    begun_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    ended_s: float = 0.0
    answer: Answer | None = None
    failure: Failure | None = None

    def timings(self, *, queue_ms: float) -> AttemptTimings:
        first_s = self.first_token_s
        return AttemptTimings(
            queue_ms=queue_ms,
            load_ms=self.answer.load_ms if self.answer else None,
            first_token_ms=None if first_s is None else round((first_s - self.begun_s) * 1000, 3),
            total_ms=round((self.ended_s - self.begun_s) * 1000, 3),
        )


async def call(bus: Bus, served: Served, work: WorkItem, attempt: str, left_s: float) -> Tried:
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
        async with asyncio.timeout(left_s):
            if work.chat.stream:
                async with _streaming(bus, work, attempt, tried) as progress:
                    tried.answer = await served.provider.chat(asked, progress)
            else:
                tried.answer = await served.provider.chat(asked, _noting(tried))
    except AttemptError as error:
        tried.failure = error.failure
    except TimeoutError:
        tried.failure = Failure(kind=FailureKind.DEADLINE, message="its time ran out while the model was answering")
    except Exception as error:
        log.exception("attempt.failed", rid=work.rid, node=target.node, model=target.model)
        message = f"{type(error).__name__} in provider {served.provider_name}; see the node's log"
        tried.failure = Failure(kind=FailureKind.INTERNAL, message=message)
    tried.ended_s = time.monotonic()
    return tried


def _noting(tried: Tried) -> Progress:
    def first(_text: str) -> None:
        if tried.first_token_s is None:
            tried.first_token_s = time.monotonic()

    return Progress(on_text=first, on_reasoning=first)


@asynccontextmanager
async def _streaming(bus: Bus, work: WorkItem, attempt: str, tried: Tried) -> AsyncIterator[Progress]:
    """Number the pieces and send each as a chunk, in order; leaving waits until the last one is sent."""
    noting = _noting(tried)
    pieces: asyncio.Queue[tuple[str, str | None] | None] = asyncio.Queue()

    def text(piece: str) -> None:
        noting.on_text(piece)
        pieces.put_nowait((piece, None))

    def reasoning(piece: str) -> None:
        noting.on_reasoning(piece)
        pieces.put_nowait(("", piece))

    async def send() -> None:
        n = 0
        while (item := await pieces.get()) is not None:
            chunk = Chunk(request_id=work.rid, attempt_id=attempt, n=n, text=item[0], reasoning=item[1])
            await bus.tell(str(ChunkSubject(work.client, work.rid, n)), chunk.encode())
            n += 1

    with one_error():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            try:
                yield Progress(on_text=text, on_reasoning=reasoning)
            finally:
                pieces.put_nowait(None)
