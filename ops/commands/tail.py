"""The events of the bus as they come, one line each."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from adapters.bus import open_bus, without_secrets
from ops.commands.screen import INDENT, KINDS, console, ms, one_line, print_json, usd
from schemas import headers as h
from schemas.decision import Decided
from schemas.event import AttemptEnded, AttemptStarted, Replied
from subjects import Cancel, Dead, Event, Request, parse, token
from subjects.streams import POLICY_BUCKET

ACTIVE = f"$KV.{POLICY_BUCKET}.active"
HEARD = ("llm.req.>", "llm.evt.>", "llm.cancel.>", "llm.dead.>", ACTIVE)

Heard = tuple[str, bytes, Mapping[str, str]]


async def follow(url: str, client: str | None, *, as_json: bool) -> None:
    """Until cancelled. Raises InvalidTokenError."""
    if client is not None:
        token("client", client)
    out = console()
    heard: asyncio.Queue[Heard] = asyncio.Queue()
    async with AsyncExitStack() as exits:
        bus = await exits.enter_async_context(open_bus(url, name="llmbus tail"))
        for subject in HEARD:
            await exits.enter_async_context(bus.listen(subject, lambda *letter: heard.put_nowait(letter)))
        console(stderr=True).print(f"listening on {without_secrets(url)}; Ctrl-C ends it", style="dim")
        while True:
            subject, data, headers = await heard.get()
            kind, who = _who(subject, headers)
            if client is not None and who.partition("/")[0] != client:
                continue
            now = datetime.now(UTC).astimezone()
            if as_json:
                line = {"at": now.isoformat(), "kind": kind, "subject": subject, "body": _body(data)}
                print_json(line, indent=None)
            else:
                say(out, *_line(now, kind, who, subject, data))


def say(out: Console, head: Text, words: Text) -> None:
    """On one line; on a terminal that is too narrow for it the words stand under the head."""
    if not out.is_terminal or head.cell_len + words.cell_len <= out.width:
        out.print(head + words, soft_wrap=True)
    else:
        head.rstrip()
        out.print(head, Padding(words, (0, 0, 0, INDENT)))


def _who(subject: str, headers: Mapping[str, str]) -> tuple[str, str]:
    """The kind of event, and `client/rid` as far as they can be known."""
    match parse(subject):
        case Request(client=client):
            client = client or headers.get(h.CLIENT) or headers.get(h.AGENT) or "?"
            return "request", f"{client}/{headers.get(h.REQUEST_ID) or headers.get(h.MSG_ID) or '?'}"
        case Event(client=client, rid=rid, kind=kind):
            return kind, f"{client}/{rid}"
        case Cancel(client=client, rid=rid):
            return "cancelled", f"{client}/{rid}"
        case Dead(reason=reason):
            return "dead", reason
    return "policy", ""


def _line(now: datetime, kind: str, who: str, subject: str, data: bytes) -> tuple[Text, Text]:
    """What happened to whom, and how."""
    client, _, rid = who.partition("/")
    style = KINDS.get(kind, "")
    try:
        words = _words(kind, subject, data)
    except ValidationError:
        words = Text("cannot be read", "red")
    if kind == "replied" and words.style == "red":
        style = "red"
    head = Text.assemble(
        (f"{now:%H:%M:%S}.{now.microsecond // 1000:03} ", "dim"),
        (f"{kind:<15} ", style),
        (f"{client:<15} ", "bold"),
        (f"{rid[:12]:<12}  ", "dim"),
    )
    return head, words


def _words(kind: str, subject: str, data: bytes) -> Text:
    match kind:
        case "request":
            asked = _body(data)
            prompt = asked.get("prompt") or "messages" if isinstance(asked, dict) else str(asked)
            return Text.assemble(subject.removeprefix("llm.req."), ("  ", ""), (one_line(str(prompt))[:80], "dim"))
        case "decided":
            return Text(Decided.decode(data).decision.line())
        case "attempt_started":
            started = AttemptStarted.decode(data)
            return Text(
                f"{started.target.model}@{started.target.node} attempt {started.attempt_id}, {started.provider}"
            )
        case "attempt_ended":
            ended = AttemptEnded.decode(data)
            failure = ended.attempt.failure
            onward = f" -> {ended.next.model}@{ended.next.node}" if ended.next else ""
            return Text(f"{ended.attempt.model}@{ended.attempt.node} {failure.kind if failure else ended.why}{onward}")
        case "replied":
            replied = Replied.decode(data)
            if replied.error is not None:
                return Text(f"{replied.error.value} in {ms(replied.total_ms)}", "red")
            return Text.assemble(f"{replied.status} in {ms(replied.total_ms)}, ", usd(replied.cost_usd))
        case "policy":
            return Text(f"revision {data.decode(errors='replace')} is active")
    return Text(one_line(data[:200].decode(errors="replace")), "dim")


def _body(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode(errors="replace")
