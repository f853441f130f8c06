"""What the demo shows: who asked what, where it went and why, one request's life, and whether it adds up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ops.commands import verify
from ops.commands.history import Life
from ops.commands.screen import ms, one_line, table, usd
from ops.commands.timeline import timeline
from schemas.decision import Decided
from schemas.reply import Reply

ANSWER_CHARS = 120
WIDE_ENOUGH = 125
FIRST_WORDS = 105
"""Columns from which on the first words have one of their own."""
PLACE_CHARS = 28


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt of the file, and what became of it."""

    row: Mapping[str, Any]
    reply: Reply
    decided: Decided | None = None

    @property
    def surprising(self) -> str | None:
        """Where it went otherwise than the file expects."""
        actions = {finding.action for finding in self.decided.decision.findings} if self.decided else set()
        expected = self.row.get("expect")
        blocked = self.reply.error is not None and self.reply.error.type == "guardrail_blocked"
        if blocked != (expected == "blocked"):
            return "was blocked" if blocked else "was not blocked"
        if expected == "redacted" and "redact" not in actions:
            return "was not redacted"
        return None


def notice(stood_in: Mapping[str, str], models: int) -> Text:
    """On top: what is real here, and how to make the rest so."""
    if not stood_in:
        return Text("\n  every model is real here\n", "green")
    return Text.assemble(
        "\n  ",
        (f"Loopback stands in for {len(stood_in)} of {models} models.", "bold yellow"),
        (" It is no model: it answers with the first words of the prompt.\n", "yellow"),
        "  For real answers: `ollama serve` and `ollama pull` what the policy names, or set the keys named above.\n",
    )


def show(console: Console, found: Sequence[Asked], shown: Life, verified: verify.Verified, took_s: float) -> None:
    console.print(answers(found, console.width))
    console.print()
    console.print(summary(found, took_s))
    console.print()
    console.print(Rule("one request's whole life, read back from the streams", style="dim", align="left"))
    console.print(timeline(shown))
    console.print()
    console.print(Rule("every decision computed again from the streams", style="dim", align="left"))
    verify.show(verified)
    console.print()


def answers(found: Sequence[Asked], width: int) -> Table:
    """One line each; where the screen is narrow, two or three."""
    narrow, apart = width < WIDE_ENOUGH, width >= FIRST_WORDS
    cut = {"no_wrap": True, "overflow": "ellipsis"}
    made = table("who", ("task", {**cut, "max_width": 14 if narrow else 22}), ("went to", cut))
    if not narrow:
        made.add_column("because of", no_wrap=True)
    made.add_column("cost", justify="right", no_wrap=True)
    made.add_column("latency", justify="right", no_wrap=True)
    if apart:
        made.add_column("first words", no_wrap=True, overflow="ellipsis", ratio=1)
    made.expand = apart
    for each in found:
        reply, words = each.reply, _words(each.reply)
        places: tuple[Text, ...] = (_where(reply), _why(each))
        if not apart:
            words.truncate(PLACE_CHARS, overflow="ellipsis")
            places = (*places, words)
        if narrow:
            places = (Text("\n").join(places),)
        made.add_row(
            Text(reply.client, "bold"), each.row.get("task") or each.row["capability"], *places,
            usd(reply.cost_usd) if reply.error is None else "", ms(reply.timings.total_ms),
            *([words] if apart else []),
        )  # fmt: skip
    return made


def summary(found: Sequence[Asked], took_s: float) -> Text:
    ok = [each.reply for each in found if each.reply.error is None]
    refused = Counter(each.reply.error.type.value for each in found if each.reply.error)
    redacted = sum(each.row.get("expect") == "redacted" and not each.surprising for each in found)
    made = Text.assemble((f"{len(found)} asked", "bold"), f" in {took_s:.1f} s, ", (f"{len(ok)} answered", "green"))
    for error, count in refused.items():
        made.append(", ").append(f"{count} {_REFUSED.get(error, error)}", "red")
    if redacted:
        made.append(f", {redacted} with a secret cut out", "yellow")
    cost, unknown = total_cost(ok)
    made.append(", cost ").append_text(usd(cost)).append(f" and {unknown} unknown" if unknown else "")
    low, high = percentiles(ok)
    return made.append(f", latency p50 {ms(low)}, p95 {ms(high)}")


def total_cost(replies: Sequence[Reply]) -> tuple[Decimal, int]:
    """What is known, and of how many replies it is not."""
    known = [reply.cost_usd for reply in replies if reply.cost_usd is not None]
    return sum(known, Decimal(0)), len(replies) - len(known)


def percentiles(replies: Sequence[Reply]) -> tuple[float, float]:
    """p50 and p95 of the whole latency."""
    ordered = sorted(reply.timings.total_ms for reply in replies) or [0.0]
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]


def facts(found: Sequence[Asked], verified: verify.Verified, took_s: float) -> dict[str, object]:
    ok = [each.reply for each in found if each.reply.error is None]
    low, high = percentiles(ok)
    return {
        "asked": len(found),
        "answered": len(ok),
        "refused": Counter(each.reply.error.type.value for each in found if each.reply.error),
        "stand_ins": sum(each.reply.notice is not None for each in found),
        "cost_usd": total_cost(ok)[0],
        "took_s": round(took_s, 3),
        "p50_ms": low,
        "p95_ms": high,
        "verify": {"recomputed": verified.recomputed, "differ": len(verified.differing)},
        "replies": [each.reply for each in found],
    }


_REFUSED = {"guardrail_blocked": "refused by a guardrail"}


def _where(reply: Reply) -> Text:
    if reply.error is not None:
        return Text(reply.error.type.value, "red")
    return Text.assemble(reply.model or "", ("@", "dim"), reply.node or "")


def _why(each: Asked) -> Text:
    if each.decided is None:
        return Text("")
    decision = each.decided.decision
    if decision.route is None:
        codes = ", ".join(finding.code for finding in decision.findings) or decision.stage
        return Text(codes, "red")
    plain = decision.strategy == "agent_preference"  # the order as listed: nothing to explain
    return Text.assemble(decision.route, ("" if plain else f" {decision.strategy}", "dim"))


def _words(reply: Reply) -> Text:
    if reply.error is not None:
        return Text(one_line(reply.error.message)[:ANSWER_CHARS], "red")
    text = one_line(reply.message.content if reply.message else "")
    if reply.notice is None:
        return Text(text[:ANSWER_CHARS])
    return Text.assemble(("loopback: ", "yellow"), (text.partition("] ")[2][:ANSWER_CHARS], "dim"))
