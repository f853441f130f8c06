"""The answer to a request that was admitted: submitted, listened for, and told to its caller while he listens.

A caller that hangs up cancels its request; an edge that ends does not: what was accepted is answered, and can be
fetched.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from functools import cached_property

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.edge import facts, sse
from adapters.edge.door import Asked, Door, Speech
from adapters.edge.errors import STATUS
from adapters.edge.line import CallerGoneError, Line
from adapters.edge.ports import Edge, Pending, Submission
from adapters.edge.responses import answered, failed, place
from adapters.edge.told import Told, has_content
from router.errors import RequestFailedError
from schemas.chunk import Chunk
from schemas.failure import Error, ErrorType
from schemas.reply import Reply

log = structlog.get_logger(__name__)


class Answering(Response):
    """The answer to an admitted request, whole or as a stream, while its caller listens."""

    def __init__(self, edge: Edge, door: Door, asked: Asked, submission: Submission, *, placed: bool = False) -> None:
        super().__init__()
        self._placed = placed
        self._edge = edge
        self._door = door
        self._asked = asked
        self._submission = submission
        self._rid = submission.rid

    @cached_property
    def _speech(self) -> Speech:
        return self._door.speech(self._asked, self._rid)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = Line(receive, send)
        with suppress(CallerGoneError):
            try:
                response = await self._answer(line)
            except asyncio.CancelledError:
                # Not passed on: this task is the server's, which ends, awaits it no more and would call it our failure.
                words = f"this edge has ended, and the request goes on: its answer will be at {place(self._rid)}"
                error = Error.of(ErrorType.UPSTREAM_INTERRUPTED, self._rid, words, spent="unknown")
                response = await self._failed(line, error, None)
            if response is not None:
                await response(scope, receive, line.send)

    async def _answer(self, line: Line) -> Response | None:
        """The response that is still to be sent. Raises CallerGoneError."""
        try:
            async with self._edge.requests.opened(self._submission) as pending:
                try:
                    async with line.listened_to():
                        if not self._asked.sse:
                            return answered(self._door, self._asked, await pending.reply())
                        await self._stream(line, pending)
                        return None
                except CallerGoneError:
                    await pending.withdraw()
                    raise
        except RequestFailedError as refusal:
            return await self._failed(line, refusal.error, refusal.reply)
        except CallerGoneError:
            raise
        except Exception:
            log.exception("edge.failed", rid=self._rid)
            words = f"the edge failed; see its log. The request may have been accepted: look at {place(self._rid)}"
            return await self._failed(line, Error.of(ErrorType.INTERNAL, self._rid, words, spent="unknown"), None)

    async def _stream(self, line: Line, pending: Pending) -> None:
        async with line.pinging(self._speech.ping, self._edge.ping_s, facts.of_request(self._rid)):
            if not self._submission.stream:
                await self._finish(line, Told(), await pending.reply())
                return
            async with aclosing(pending.items()) as items:
                await self._pieces(line, items)

    async def _pieces(self, line: Line, items: AsyncIterator[Chunk | Reply]) -> None:
        told, first = Told(), None
        async for item in items:
            if isinstance(item, Reply):
                await self._finish(line, told, item)
                return
            if item.n == 0 or (first and first.attempt_id != item.attempt_id):
                first = item
            if not told.continues(item):
                words = f"the attempt that was answering broke off; the whole answer will be at {place(self._rid)}"
                raise RequestFailedError.of(ErrorType.UPSTREAM_INTERRUPTED, self._rid, words, spent="unknown")
            if told.follows(item) and has_content(item):
                if not line.begun:
                    await line.begin(facts.of_chunk(self._rid, first or item))
                piece = item if told or first is None else _named(item, first)
                told.add(item)
                said = self._speech.piece(piece)
                await line.write(sse.placed(said, f"{item.attempt_id}:{item.n}") if self._placed else said)

    async def _finish(self, line: Line, told: Told, reply: Reply) -> None:
        if reply.error is not None:
            raise RequestFailedError(reply.error, reply)
        rest = told.rest(reply)
        if rest is None:
            words = f"what was sent is not how the answer begins; the whole one is at {place(self._rid)}"
            raise RequestFailedError.of(ErrorType.UPSTREAM_INTERRUPTED, self._rid, words, spent="yes")
        await line.begin(facts.of_reply(reply))
        await line.write(b"".join(map(self._speech.piece, rest)) + self._speech.end(reply), more=False)

    async def _failed(self, line: Line, error: Error, reply: Reply | None) -> Response | None:
        """A status while there is a choice; else the end of the stream says so, and cannot be taken for a whole one."""
        if not line.begun:
            return failed(self._edge, self._door, error, reply)
        await line.write(self._speech.error(error, STATUS[error.type]), more=False)
        return None


def _named(chunk: Chunk, first: Chunk) -> Chunk:
    """The first piece with content says who answers, though that came with an empty one before it."""
    return chunk.model_copy(update={"model": first.model, "node": first.node, "provider": first.provider})
