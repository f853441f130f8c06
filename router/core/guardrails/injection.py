"""Finds prompt injection and jailbreaks by their wording, in English and Korean, also behind common disguises."""

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
# Of a long text a piece at a time is looked at; pieces overlap, lest their edges cut a wording.
_PIECE: Final = 4096
_OVERLAP: Final = 240
# How far around one of its rare words the rest of a wording can stand.
_REACH: Final = 240
# ASCII words in lower case, all else blank: split, it is the cheapest look at a text there is.
_WORDS: Final = bytes(ord(chr(b).lower()) if b < 0x80 and chr(b).isalnum() else 0x20 for b in range(256))
# What is left of UTF-8 without these are the first bytes of Hangul, kana, Chinese and Cyrillic letters.
_NO_STEMS: Final = bytes(b for b in range(256) if not (0xD0 <= b <= 0xD3 or 0xE3 <= b <= 0xED))


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
    for start in range(0, max(len(low) - _OVERLAP, 1), _PIECE - _OVERLAP):
        end = min(start + _PIECE, len(low))
        for rule, marks in _due(low[start:end]):
            if found.get(rule.code, 0) < rule.weight and _says(rule, marks, low, start, end):
                found[rule.code] = rule.weight
    return found


def _due(piece: str) -> Iterator[tuple[Rule, list[str]]]:
    """The rules of whose every set of words one is in the piece, with those of their first set: few, mostly none."""
    data = piece.encode("utf-8", "replace")
    words = data.translate(_WORDS).split()
    rare = _RARE_WORDS.intersection(words)
    if rare:
        present = {word.decode() for word in _ALL_WORDS.intersection(words)}
        for rule in {rule for word in rare for rule in _BY_RARE_WORD[word]}:
            if not any(map(present.isdisjoint, rule.words[1:])):
                yield rule, [word for word in rule.words[0] if word in present]
    if not piece.isascii() and data.translate(None, _NO_STEMS):
        stems = [stem for head in _BY_HEAD if head in piece for stem in _BY_HEAD[head] if stem in piece]
        for rule in {rule for stem in stems for rule in _BY_RARE_STEM[stem]}:
            if all(any(stem in piece for stem in each) for each in rule.words[1:]):
                yield rule, [stem for stem in stems if stem in rule.words[0]]


def _says(rule: Rule, marks: list[str], low: str, start: int, end: int) -> bool:
    """Is the wording around one of the marks? The rest of its words must be there before the pattern is tried."""
    for mark in marks:
        at = low.find(mark, start, end)
        while at >= 0:
            first, last = max(at - _REACH, 0), at + _REACH
            near = low[first:last]
            if all(any(word in near for word in each) for each in rule.words[1:]) and rule.pattern.search(
                low, first, last
            ):
                return True
            at = low.find(mark, at + _REACH // 2, end)
    return False


def _index(rules: tuple[Rule, ...]) -> Mapping[str, tuple[Rule, ...]]:
    """The rules by each word of their first set."""
    words = {word for rule in rules for word in rule.words[0]}
    return MappingProxyType({word: tuple(rule for rule in rules if word in rule.words[0]) for word in words})


_BY_RARE_WORD: Final = MappingProxyType({word.encode(): rules for word, rules in _index(BY_WORD).items()})
_RARE_WORDS: Final = frozenset(_BY_RARE_WORD)
_ALL_WORDS: Final = frozenset(word.encode() for rule in BY_WORD for each in rule.words for word in each)
_BY_RARE_STEM: Final = _index(BY_STEM)
# Most stems fall by their first letter, which is found, or not, far faster than a stem.
_BY_HEAD: Final = MappingProxyType({s[0]: tuple(t for t in _BY_RARE_STEM if t[0] == s[0]) for s in _BY_RARE_STEM})


def _combined(evidence: dict[str, float]) -> float:
    """As if every code were an independent witness."""
    doubt = 1.0
    for weight in sorted(evidence.values()):  # the order counts in the last digits
        doubt *= 1 - weight
    return round(1 - doubt, 3)
