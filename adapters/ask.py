"""The synchronous door: a plain `nc.request` on `llm.ask.*` becomes a durable request, and its reply the answer.

With `stream: true` each piece is a message of its own before it. When this process dies meanwhile, the request lives on
and its reply still is at `llm.res.<client>.<rid>`.
"""

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

from pydantic import ValidationError

from adapters.bus import JetStreamBus
from adapters.client import Ticket, await_reply, submit_body
from adapters.mailbox import Heard, Mailbox
from adapters.streaming import Feed, feed
from router.errors import BusError, RequestFailedError
from router.ports import Letter, Question
from schemas import headers as h
from schemas.failure import Error, ErrorType
from schemas.reply import Reply
from schemas.request import DEFAULT_DEADLINE_MS, LlmRequest, request_hash
from subjects import Ask, is_token, parse

SERVICE = "llmbus-ask"
ANONYMOUS = "anonymous"
PASSED_ON = (h.AGENT, h.TRACEPARENT)
"""Headers of the caller that go with the request; all others stay outside."""


@asynccontextmanager
async def asking(bus: JetStreamBus) -> AsyncIterator[None]:
    """Answer `llm.ask.>` until the context ends; replicas share the questions."""
    async with Mailbox(bus) as mailbox:

        async def answer(question: Question) -> None:
            await _answer(bus, mailbox, question)

        about = "Ask a model: llm.ask.<capability>, body JSON or plain text"
        async with bus.serve("llm.ask.>", answer, name=SERVICE, about=about):
            yield


class _Asked(NamedTuple):
    """What a question says of itself."""

    rid: str
    client: str
    deadline_ms: int
    stream: bool


async def _answer(bus: JetStreamBus, mailbox: Mailbox, question: Question) -> None:
    address = parse(question.subject)
    asked = _asked(question)
    if not isinstance(address, Ask):
        error = Error.of(
            ErrorType.BAD_REQUEST, asked.rid, f"{question.subject!r} is no llm.ask.<capability>[.<client>]"
        )
        await _respond_error(question, error, asked.client)
        return
    client = address.client or asked.client
    headers = {name: value for name in PASSED_ON if (value := question.headers.get(name))}

    async def submit() -> Ticket:
        return await submit_body(
            bus, address.capability, question.data, client=client, rid=asked.rid, deadline_ms=asked.deadline_ms,
            named_in_subject=address.client is not None, headers=headers,
        )  # fmt: skip

    try:
        await mailbox.open(client)
        with mailbox.expecting(client, asked.rid) as heard:
            if asked.stream:
                async with feed(bus, client, asked.rid) as pieces:
                    letter = await _streamed(question, pieces, mailbox, heard, await submit())
            else:
                letter = await await_reply(mailbox, heard, await submit())
    except RequestFailedError as refusal:
        await _respond_error(question, refusal.error, client)
    except BusError as error:
        await _respond_error(question, Error.of(ErrorType.STORAGE_UNAVAILABLE, asked.rid, str(error)), client)
    else:
        own = {name: value for name, value in letter.headers.items() if not name.startswith("Nats-")}
        await question.respond(letter.data, own)


async def _streamed(question: Question, pieces: Feed, mailbox: Mailbox, heard: Heard, ticket: Ticket) -> Letter:
    """Pass the pieces on; the reply. Raises RequestFailedError."""
    async with aclosing(pieces.until(await_reply(mailbox, heard, ticket))) as items:
        async for item in items:
            if isinstance(item, Letter):
                return item
            await question.respond(item.encode(), {h.ATTEMPT: item.attempt_id})
    raise AssertionError("a feed ends with the reply")


def _asked(question: Question) -> _Asked:
    """As far as it says it."""
    body: LlmRequest | None = None
    if question.data[:64].lstrip()[:1] == b"{":
        try:
            body = LlmRequest.decode(question.data)
        except ValidationError:
            body = None
    rid = question.headers.get(h.REQUEST_ID) or (body and body.request_id)
    client = question.headers.get(h.CLIENT) or question.headers.get(h.AGENT) or (body and body.agent)
    return _Asked(
        rid=rid if is_token(rid) else uuid.uuid4().hex,
        client=client if is_token(client) else ANONYMOUS,
        deadline_ms=body.deadline_ms if body else DEFAULT_DEADLINE_MS,
        stream=body.stream if body else False,
    )


async def _respond_error(question: Question, error: Error, client: str) -> None:
    address = parse(question.subject)
    capability = address.capability if isinstance(address, Ask) else ""
    reply = Reply.refused(
        client=client, request_hash=request_hash(capability, question.data), error=error, total_ms=0.0
    )
    await question.respond(reply.encode(), reply.headers())
