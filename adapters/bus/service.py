"""A subject served for plain `nc.request` callers, visible in NATS service discovery, each question in its own task."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import nats.micro
import structlog
from nats.aio.client import Client
from nats.micro.request import Request

from router.errors import one_error, stop
from router.ports import NO_HEADERS, Headers, Question

log = structlog.get_logger(__name__)

LAST_ANSWERS_S = 5.0


@asynccontextmanager
async def serve(
    client: Client, subject: str, answer: Callable[[Question], Awaitable[None]], *, name: str, about: str
) -> AsyncIterator[None]:
    """Replicas share the questions; leaving stops taking, and gives the answers under way a moment."""
    with one_error():
        async with asyncio.TaskGroup() as tasks:
            answering: set[asyncio.Task[None]] = set()

            async def received(request: Request) -> None:
                async def respond(data: bytes, headers: Headers) -> None:
                    await request.respond(data, headers=dict(headers))

                question = Question(request.subject, request.data, request.headers or NO_HEADERS, respond)
                task = tasks.create_task(_answer(answer, question))
                answering.add(task)
                task.add_done_callback(answering.discard)

            service = await nats.micro.add_service(client, name=name, version="1.0.0", description=about)
            await service.add_endpoint(name="ask", subject=subject, queue_group=name, handler=received)
            for _ in range(2):
                await client.flush()  # who is told that this has begun may ask at once
            try:
                yield
            finally:
                if not client.is_closed:
                    await service.stop()
                if answering:
                    await asyncio.wait(answering, timeout=LAST_ANSWERS_S)
                # Who still waits finds the answer on its stream: the request is durable.
                await stop(*answering)


async def _answer(answer: Callable[[Question], Awaitable[None]], question: Question) -> None:
    try:
        await answer(question)
    except Exception:
        # The request, once accepted, is answered over its stream all the same.
        log.exception("question.failed", subject=question.subject)
