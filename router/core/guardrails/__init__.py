"""The guardrails by name, and `screen`, which applies a policy's rules about them to a request's texts.

Adding a guardrail is one file with one function of type `Guardrail`, and one line in `GUARDRAILS`.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from router.core.guardrails.base import Guardrail, Match, Span
from router.core.guardrails.injection import injection
from router.core.guardrails.secrets import secrets
from router.core.guardrails.seen import digest, found_in
from schemas.decision import Finding
from schemas.policy import GuardrailRule

GUARDRAILS: Final[Mapping[str, Guardrail]] = MappingProxyType({"secrets": secrets, "injection": injection})


FOR_WHO_OBEYS: Final = frozenset({"injection"})
"""What harms only a model that follows instructions."""


def for_data(rules: Mapping[str, GuardrailRule]) -> Mapping[str, GuardrailRule]:
    """The rules for texts to be embedded, which no model obeys: what it would is recorded and lets pass.

    A document that quotes an attack must stay findable; whoever puts it into a prompt later is screened then.
    """
    return {
        name: rule.model_copy(update={"action": "flag"}) if name in FOR_WHO_OBEYS and rule.action != "off" else rule
        for name, rule in rules.items()
    }


def screen(texts: Sequence[str], rules: Mapping[str, GuardrailRule]) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """What the guardrails found, and the texts with what the policy wants redacted replaced by `[REDACTED:<code>]`."""
    findings: dict[tuple[str, str, str], Finding] = {}
    spans: dict[int, list[tuple[Span, str]]] = {}
    seen = [digest(text) for text in texts]
    for name, rule in rules.items():
        if rule.action == "off":
            continue
        for at, match in _matches(GUARDRAILS[name], texts, seen):
            finding = _finding(name, rule, match)
            key = (name, match.code, finding.action)
            if key not in findings or findings[key].score < finding.score:
                findings[key] = finding
            if finding.action == "redact" and match.span is not None:
                spans.setdefault(at, []).append((match.span, match.code))
    redacted = (_without(text, sorted(spans[at])) if at in spans else text for at, text in enumerate(texts))
    return tuple(findings.values()), tuple(redacted)


def _matches(guardrail: Guardrail, texts: Sequence[str], seen: Sequence[bytes]) -> Iterator[tuple[int, Match]]:
    """What it finds, and in which of the texts."""
    for at, text in enumerate(texts):
        for match in found_in(text, seen[at], guardrail):
            yield at, match


def _finding(name: str, rule: GuardrailRule, match: Match) -> Finding:
    action = rule.action
    if action == "off" or match.score < rule.threshold or (action == "redact" and match.span is None):
        action = "flag"
    return Finding(rule=name, code=match.code, score=match.score, action=action)


def _without(text: str, spans: Sequence[tuple[Span, str]]) -> str:
    """Overlapping spans become one, under the code of the first."""
    parts: list[str] = []
    reached = 0
    for span, code in spans:
        if not parts or span.start >= reached:
            parts += text[reached : span.start], f"[REDACTED:{code}]"
        reached = max(reached, span.end)
    return "".join((*parts, text[reached:]))
