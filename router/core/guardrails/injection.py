"""Finds prompt injection and jailbreaks by their wording, in English and Korean, also behind common disguises."""

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
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


def injection(text: str) -> Iterator[Match]:
    """At most one match: under the code that convinces most, with the score of all codes together."""
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
        for rule, at in due(low[start : start + _PIECE]):
            at += start
            if found.get(rule.code, 0) < rule.weight and rule.pattern.search(low, max(at - _REACH, 0), at + _REACH):
                found[rule.code] = rule.weight
    return found


def due(piece: str) -> Iterator[tuple[Rule, int]]:
    """The rules that can match near a place in the piece, and the place: few, mostly none."""
    data = piece.encode("utf-8", "replace")
    shape = data.translate(_WORDS).decode()
    words = shape.split()
    if not _RARE_WORDS.isdisjoint(words):
        present = _ALL_WORDS.intersection(words)
        for word in _RARE_WORDS & present:
            rules = [rule for rule in _BY_RARE_WORD[word] if _all_in(rule, present)]
            if rules:
                for at, near in _places(word, f" {shape} "):
                    chars = at if len(piece) == len(data) else len(data[:at].decode(errors="ignore"))
                    yield from ((rule, chars) for rule in rules if _all_in(rule, near))
    if not piece.isascii() and data.translate(None, _NO_STEMS):
        yield from _due_by_stem(piece)


def _all_in(rule: Rule, words: AbstractSet[str]) -> bool:
    """Is of each further set of the rule a word among these?"""
    return not any(map(words.isdisjoint, rule.words[1:]))


def _places(word: str, shape: str) -> Iterator[tuple[int, AbstractSet[str]]]:
    """Where a word stands, and the words around it; of places close together only the first."""
    at = shape.find(f" {word} ")
    while at >= 0:
        yield at, set(shape[max(at - _REACH, 0) : at + _REACH].split())
        at = shape.find(f" {word} ", at + _REACH // 2)


def _due_by_stem(piece: str) -> Iterator[tuple[Rule, int]]:
    passed: dict[str, int] = {}
    for stem in _STEMS.finditer(piece):
        at = stem.start()
        if at >= passed.get(stem[0], 0):
            passed[stem[0]] = at + _REACH // 2
            near = piece[max(at - _REACH, 0) : at + _REACH]
            for rule in _BY_RARE_STEM[stem[0]]:
                if all(any(other in near for other in each) for each in rule.words[1:]):
                    yield rule, at


_BY_RARE_WORD: Final = {word: tuple(r for r in BY_WORD if word in r.words[0]) for r in BY_WORD for word in r.words[0]}
_RARE_WORDS: Final = frozenset(_BY_RARE_WORD)
_ALL_WORDS: Final = frozenset(word for rule in BY_WORD for each in rule.words for word in each)
_RARE_STEMS: Final = sorted({stem for rule in BY_STEM for stem in rule.words[0]}, reverse=True)
# One pass for all of them; the longer stand before those that they start with, and count for those too.
_STEMS: Final = re.compile("|".join(_RARE_STEMS))
_BY_RARE_STEM: Final = {s: tuple(r for r in BY_STEM if any(t in s for t in r.words[0])) for s in _RARE_STEMS}


def _combined(evidence: dict[str, float]) -> float:
    """As if every code were an independent witness."""
    doubt = 1.0
    for weight in sorted(evidence.values()):  # the order counts in the last digits
        doubt *= 1 - weight
    return round(1 - doubt, 3)
