"""Finds prompt injection and jailbreaks by their wording, in English and Korean, also behind common disguises."""

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from router.core.guardrails.base import Match
from router.core.guardrails.injection_rules import BY_STEM, BY_WORD, Rule
from router.core.guardrails.unmask import disguised, fold, mangled

_REPORTED: Final = 0.3
_DISGUISE: Final = 0.4
# This many words that no honest text mangles so, and one in so many characters.
_MANGLED_WORDS: Final = 3
_MANGLED_EVERY: Final = 25
_MANGLED: Final = 0.55
# In a long text one loud wording is likelier to be an accident, so it takes a stronger or a second one.
_LONG: Final = 2500
_DAMPED: Final = 0.8
# The words of a wording stand close together, so a text is read through a window. Windows overlap, lest
# their edges cut one.
_WINDOW: Final = 640
_OVERLAP: Final = 160
_WORDS: Final = bytes(b if (chr(b).isalnum() and b < 0x80) or b >= 0x80 else 0x20 for b in range(256))
_WHOLE: Final = frozenset(word.encode() for rule in BY_WORD for each in rule.words for word in each)
_STEM_SCRIPTS: Final = re.compile("[\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]")


def injection(texts: Sequence[str]) -> Iterator[Match]:
    """At most one match per text: under the code that convinces most, with the score of all codes together."""
    for text in texts:
        evidence = _evidence(text)
        score = _combined(evidence)
        if score >= _REPORTED:
            yield Match(max(evidence, key=lambda code: (evidence[code], code)), score)


def _evidence(text: str) -> dict[str, float]:
    """The weight of every code that the text shows, in itself or in a reading without its disguise."""
    low = fold(text)
    found = _weights(low)
    odd = mangled(low)
    for reading in disguised(text, low, odd):
        hidden = {code: weight for code, weight in _weights(reading).items() if weight > found.get(code, 0)}
        if hidden:
            found |= hidden | {"disguise": _DISGUISE}
    if odd >= _MANGLED_WORDS and odd * _MANGLED_EVERY > len(low):
        found["disguise"] = _MANGLED
    if len(low) > _LONG:
        found = {code: weight * _DAMPED for code, weight in found.items()}
    return found


def _weights(low: str) -> dict[str, float]:
    """The strongest wording of every code in one reading."""
    found: dict[str, float] = {}
    stems = not low.isascii() and _STEM_SCRIPTS.search(low) is not None
    for start in range(0, max(len(low) - _OVERLAP, 1), _WINDOW - _OVERLAP):
        for rule in _rules(low[start : start + _WINDOW], stems):
            if found.get(rule.code, 0) < rule.weight and rule.pattern.search(low, start, start + _WINDOW):
                found[rule.code] = rule.weight
    return found


def _rules(window: str, stems: bool) -> set[Rule]:
    """Those whose words the window has: few, so that most patterns never run."""
    words = frozenset(window.encode("utf-8", "replace").translate(_WORDS).split())
    rules = _due(_BY_FIRST_WORD, {word.decode() for word in words & _WHOLE})
    if stems:
        letters = frozenset(window)  # most stems fall by this test, which is cheaper than looking for them
        firsts = (stem for stem in _BY_FIRST_STEM if letters.issuperset(stem) and stem in window)
        likely = {rule for stem in firsts for rule in _BY_FIRST_STEM[stem]}
        rules |= {r for r in likely if all(any(stem in window for stem in each) for each in r.words[1:])}
    return rules


def _index(rules: tuple[Rule, ...]) -> Mapping[str, tuple[Rule, ...]]:
    """The rules by each word of their first set."""
    words = {word for rule in rules for word in rule.words[0]}
    return MappingProxyType({word: tuple(rule for rule in rules if word in rule.words[0]) for word in words})


_BY_FIRST_WORD: Final = _index(BY_WORD)
_BY_FIRST_STEM: Final = _index(BY_STEM)


def _due(index: Mapping[str, tuple[Rule, ...]], present: set[str]) -> set[Rule]:
    """The rules of whose every set of words one is present."""
    likely = {rule for word in present for rule in index.get(word, ())}
    return {rule for rule in likely if not any(map(present.isdisjoint, rule.words))}


def _combined(evidence: dict[str, float]) -> float:
    """As if every code were an independent witness."""
    doubt = 1.0
    for weight in sorted(evidence.values()):  # the order counts in the last digits
        doubt *= 1 - weight
    return round(1 - doubt, 3)
