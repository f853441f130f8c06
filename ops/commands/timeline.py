"""One request's whole life as a timeline, every moment relative to the broker's receipt of the request."""

import json
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from adapters.bus import open_bus
from ops.commands.history import Life, Link, life
from ops.commands.screen import KINDS, console, ms, one_line, print_json, table, usd
from schemas.decision import Decided, Decision, Forward
from schemas.event import AttemptEnded, AttemptStarted, Replied
from schemas.reply import Reply
from schemas.work import AttemptRecord

PROMPT_CHARS = 200
ANSWER_CHARS = 300


async def show_life(url: str, name: str, *, as_json: bool) -> None:
    async with open_bus(url, name="llmbus replay") as bus:
        found = await life(bus, name)
    if as_json:
        print_json(_facts(found))
    else:
        console().print(timeline(found))


def timeline(found: Life) -> RenderableType:
    asked_ms = found.decided.world.received_ms
    made = Table.grid(padding=(0, 2))
    made.add_column(justify="right", style="dim", no_wrap=True)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    made.add_row("0 ms", Text("request", KINDS["request"]), _request(found))
    for at_ms, link in found.links:
        kind, words = _link(link)
        made.add_row(f"+{at_ms - asked_ms} ms", Text(kind, KINDS[kind]), words)
    if found.reply is not None:
        made.add_row("", Text("reply", "green" if found.reply.error is None else "red"), _reply(found.reply))
    else:
        made.add_row("", Text("reply", "yellow"), Text("none yet", "yellow"))
    asked = datetime.fromtimestamp(asked_ms / 1000, UTC).astimezone()
    title = Text.assemble((f"{found.client}/{found.rid}", "bold"), (f"  asked {asked:%Y-%m-%d %H:%M:%S %Z}", "dim"))
    return Group(title, "", made)


def _request(found: Life) -> RenderableType:
    letter = found.request
    if letter is None:
        return Text(f"LLM_REQUESTS {found.decided.request_seq} is kept no longer", "yellow")
    stored = Text(f"{letter.subject} stored as LLM_REQUESTS {letter.seq}, {len(letter.data)} bytes")
    return Group(stored, Text(_prompt(letter.data), "dim"))


def _prompt(body: bytes) -> str:
    try:
        asked = json.loads(body)
        text = asked.get("prompt") or " | ".join(asked.get("embed") or ()) or asked["messages"][-1]["content"]
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        text = body.decode(errors="replace")
    text = one_line(str(text))
    return text if len(text) <= PROMPT_CHARS else f"{text[:PROMPT_CHARS]}…"


def _link(link: Link) -> tuple[str, RenderableType]:
    match link:
        case Decided():
            return "decided", _decided(link)
        case AttemptStarted(target=t):
            return "attempt_started", Text(f"{link.attempt_id}  {t.model}@{t.node} ({t.backend}) by {link.provider}")
        case AttemptEnded():
            onward = f"; next {link.next.model}@{link.next.node}" if link.next else ""
            return "attempt_ended", Text.assemble(_attempt(link.attempt), f", {link.booking}; {link.why}{onward}")
        case Replied():
            return "replied", _replied(link)


def _decided(decided: Decided) -> RenderableType:
    decision = decided.decision
    facts = [
        f"stage {decision.stage}",
        f"policy revision {decided.world.policy}",
        f"urgency {decision.urgency}",
        decision.task and f"task {decision.task}",
    ]
    parts: list[RenderableType] = [
        Text(decision.line(), "bold"),
        Text(", ".join(fact for fact in facts if fact), "dim"),
    ]
    if not isinstance(decision.choice, Forward):
        message = getattr(decision.choice, "message", None)
        parts += [Text(message, "red")] if message else []
    parts += [
        Text(f"{finding.rule} found {finding.code} ({finding.score:.2f}): {finding.action}", "yellow")
        for finding in decision.findings
    ]
    if decision.candidates:
        parts.append(Padding(_candidates(decision), (0, 0, 0, 2)))
    return Group(*parts)


def _candidates(decision: Decision) -> Table:
    made = table("candidate", ("score", {"justify": "right"}), "")
    fallbacks = decision.choice.fallbacks if isinstance(decision.choice, Forward) else ()
    spare = [(target.node, target.model) for target in fallbacks]
    chosen = (
        (decision.choice.target.node, decision.choice.target.model) if isinstance(decision.choice, Forward) else None
    )
    for each in decision.candidates:
        place = (each.node, each.model)
        if each.passed_over:
            why = Text(f"passed over: {each.passed_over}", "yellow")
        elif place == chosen:
            why = Text("chosen", "green")
        elif place in spare:
            why = Text(f"fallback {spare.index(place) + 1}", "dim")
        else:
            why = Text("")
        made.add_row(f"{each.model}@{each.node}", "" if each.score is None else f"{each.score:g}", why)
    return made


def _attempt(attempt: AttemptRecord) -> Text:
    made = Text(f"{attempt.attempt_id}  {attempt.model}@{attempt.node} in {ms(attempt.total_ms)}")
    if attempt.failure is not None:
        return made.append(f", {attempt.failure.kind.value}: {attempt.failure.message}", "red")
    if attempt.usage is not None:
        made.append(f", {attempt.usage.tokens_in} tokens in, {attempt.usage.tokens_out} out")
    return made.append(", ").append_text(usd(attempt.cost_usd))


def _replied(replied: Replied) -> RenderableType:
    status = Text(replied.status, "green") if replied.error is None else Text(replied.error.value, "red")
    whole = Text.assemble(status, f" after {ms(replied.total_ms)}, cost ", usd(replied.cost_usd))
    if replied.attempt is None:
        return whole
    return Group(whole, Text.assemble(_attempt(replied.attempt), f", {replied.booking}" if replied.booking else ""))


def _reply(reply: Reply) -> RenderableType:
    parts: list[RenderableType] = []
    if reply.error is not None:
        money = "no money was spent" if reply.error.spent == "no" else f"money spent: {reply.error.spent}"
        parts += [Text(reply.error.message, "red"), Text(money, "dim")]
    if reply.message is not None:
        text = one_line(reply.message.content)
        parts.append(Text(text if len(text) <= ANSWER_CHARS else f"{text[:ANSWER_CHARS]}…"))
    if reply.embeddings is not None:
        parts.append(Text(f"vectors: {len(reply.embeddings)}"))
    if reply.notice:
        parts.append(Text(reply.notice, "yellow"))
    return Group(*parts)


def _facts(found: Life) -> dict[str, object]:
    letter = found.request
    return {
        "client": found.client,
        "rid": found.rid,
        "request": letter
        and {
            "seq": letter.seq,
            "subject": letter.subject,
            "stored_ms": letter.timestamp_ms,
            "headers": dict(letter.headers),
            "body": letter.data.decode(errors="replace"),
        },
        "events": [
            {"at_ms": at_ms, "after_ms": at_ms - found.decided.world.received_ms, "kind": _link(link)[0], "body": link}
            for at_ms, link in found.links
        ],
        "reply": found.reply,
    }
