"""`llmbus ask`, `submit` and `result`: one request, from the shell."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.commands.options import DEFAULT_URL, Json, NatsUrl, run_quietly

if TYPE_CHECKING:
    from schemas.reply import Reply
    from schemas.request import LlmRequest

CLI = "cli"
"""Who asks, when nobody is named."""

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask; `-` reads it from stdin.")]
Capability = Annotated[
    str, typer.Option("--capability", "-c", help="The word after llm.req.: chat, code, creative, ...")
]
Task = Annotated[str | None, typer.Option("--task", "-t", help="A task of the policy: plan, code, review, ...")]
Agent = Annotated[str | None, typer.Option("--agent", "-a", help="The service that asks; its preferences apply.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="A model or an alias of the policy.")]
Urgency = Annotated[str, typer.Option("--urgency", "-u", help="critical, high, normal or batch.")]
Deadline = Annotated[
    int | None, typer.Option("--deadline-ms", min=1, metavar="MS", help="Give up after this many milliseconds.")
]


def ask(
    prompt: Prompt, capability: Capability = "chat", task: Task = None, agent: Agent = None, model: Model = None,
    urgency: Urgency = "normal", deadline_ms: Deadline = None,
    stream: Annotated[bool, typer.Option("--stream", "-s", help="Print the answer as it comes.")] = False,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Ask, and print the answer.

    How it came about goes to stderr. Ctrl-C cancels the request.
    """
    request = _request(prompt, task=task, agent=agent, model=model, urgency=urgency, deadline_ms=deadline_ms)
    run_quietly(_ask(request, capability, nats_url, stream=stream, as_json=as_json))


def submit(
    prompt: Prompt, capability: Capability = "chat", task: Task = None, agent: Agent = None, model: Model = None,
    urgency: Urgency = "normal", deadline_ms: Deadline = None, nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Have a request accepted, and print its id."""
    request = _request(prompt, task=task, agent=agent, model=model, urgency=urgency, deadline_ms=deadline_ms)
    run_quietly(_submit(request, capability, nats_url, as_json=as_json))


def result(
    request_id: Annotated[str, typer.Argument(metavar="ID", help="RID or CLIENT/RID.")],
    wait: Annotated[float, typer.Option("--wait", min=0, metavar="S", help="Wait this many seconds for it.")] = 0.0,
    nats_url: NatsUrl = DEFAULT_URL, as_json: Json = False,
) -> None:  # fmt: skip
    """Print the answer to an earlier request."""
    run_quietly(_result(request_id, wait, nats_url, as_json=as_json))


async def _ask(request: "LlmRequest", capability: str, url: str, *, stream: bool, as_json: bool) -> None:
    import asyncio
    import uuid

    from adapters.client import Client, RequestFailedError
    from ops.commands.screen import print_json
    from ops.commands.streamed import Printed, show_reply, show_stream

    who, rid = request.agent or CLI, uuid.uuid4().hex
    try:
        async with Client.connect(url, who) as client:
            if stream:
                coming = client.stream(request, capability=capability, request_id=rid)
                await show_stream(coming, Printed(), as_json=as_json)
                return
            reply = await client.ask(request, capability=capability, request_id=rid)
    except asyncio.CancelledError:
        typer.echo(f"\ncancelled; `llmbus result {who}/{rid}` says what came of it", err=True)
        raise
    except RequestFailedError as refusal:
        if not as_json:
            raise
        print_json(refusal.reply or {"error": refusal.error}, indent=None if stream else 2)
        raise typer.Exit(1) from None
    if as_json:
        print_json(reply)
    else:
        show_reply(reply, reply.message.content if reply.message else "")


async def _submit(request: "LlmRequest", capability: str, url: str, *, as_json: bool) -> None:
    from adapters.client import Client
    from ops.commands.screen import print_json

    async with Client.connect(url, request.agent or CLI) as client:
        ticket = await client.submit(request, capability=capability)
    if as_json:
        print_json({"request_id": ticket.request_id, "client": ticket.client, "seq": ticket.seq})
    else:
        typer.echo(ticket.request_id)


async def _result(name: str, wait_s: float, url: str, *, as_json: bool) -> None:
    from ops.commands.screen import print_json
    from ops.commands.streamed import show_reply
    from router.errors import LlmbusError

    reply = await _find(name, wait_s, url)
    if reply is None:
        raise LlmbusError(f"no answer to {name} yet; wait for it with `--wait 30`, or look at `llmbus replay {name}`")
    if as_json:
        print_json(reply)
    elif reply.error is not None:
        raise LlmbusError(f"{reply.error.type.value}: {reply.error.message}")
    else:
        show_reply(reply, reply.message.content if reply.message else "")
    if reply.error is not None:
        raise typer.Exit(1)


async def _find(name: str, wait_s: float, url: str) -> "Reply | None":
    import asyncio

    from adapters.bus import open_bus
    from ops.commands.history import pattern
    from schemas.reply import Reply
    from subjects.streams import REPLIES

    subject = f"llm.res.{pattern(name)}"
    came = asyncio.Event()
    async with open_bus(url, name="llmbus result") as bus, bus.listen(subject, lambda *_: came.set()):
        letter = await bus.last(REPLIES, subject)
        if letter is None and wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await came.wait()
            except TimeoutError:
                pass
            letter = await bus.last(REPLIES, subject)
    return Reply.decode(letter.data) if letter else None


def _request(prompt: str, **fields: Any) -> "LlmRequest":
    import sys

    from pydantic import ValidationError

    from router.errors import LlmbusError
    from schemas.request import LlmRequest

    text = sys.stdin.read() if prompt == "-" else prompt
    try:
        return LlmRequest(prompt=text, **{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        lines = [f"{'.'.join(map(str, e['loc']))} {e['msg'].removeprefix('Value error, ')}".strip() for e in found]
        raise LlmbusError("this request would be refused: " + "; ".join(lines)) from None
