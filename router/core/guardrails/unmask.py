"""Undoes disguises: what a text says once look-alike letters, leet digits, spacing and encodings are taken off it."""

import binascii
import codecs
import re
from collections.abc import Iterator
from typing import Final
from unicodedata import is_normalized, normalize

_INVISIBLE: Final = re.compile(
    r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff\U000e0000-\U000e007f]"
)
# Of UTF-8, without these: nothing for ASCII, Latin-1 letters, Chinese and Hangul, which `fold` changes but for case.
_USUAL: Final = bytes(b for b in range(256) if b < 0xC0 or b == 0xC3 or 0xE4 <= b <= 0xED)
# Without these: the first bytes of the letters of `_LOOKALIKES`.
_NO_LOOKALIKES: Final = bytes(b for b in range(256) if b not in (0xC9, 0xCA) and not 0xCD <= b <= 0xD6)
_LOOKALIKE_LETTERS: Final = [
    "aаɑαά",
    "bьβ",
    "cсϲ",
    "dԁ",
    "eеεєέ",
    "gɡ",
    "hһ",
    "iіιί",
    "jјϳ",
    "kκ",
    "lӏ",
    "mм",
    "nηոո",
    "oοоόօ",
    "pρр",
    "qԛ",
    "sѕ",
    "tтτ",
    "uυս",
    "vνѵ",
    "wωѡԝ",
    "xхχ",
    "yуүγ",
]
_LOOKALIKES: Final = str.maketrans({look: group[0] for group in _LOOKALIKE_LETTERS for look in group[1:]})
_LOOKALIKE: Final = re.compile(f"[{''.join(group[1:] for group in _LOOKALIKE_LETTERS)}]")
_MIXED: Final = re.compile(rf"[a-z]{_LOOKALIKE.pattern}|{_LOOKALIKE.pattern}[a-z]")

# Letters, and the digits and signs that stand for letters in leet.
_LEET_SHAPES: Final = bytes(
    0x31 if b in b"0134576@$!|+89" else 0x61 if b < 0x80 and chr(b).isalnum() else 0x20 for b in range(256)
)
_NO_LEET: Final = bytes(b for b in range(256) if _LEET_SHAPES[b] != 0x31)
_LEET_WORD: Final = re.compile(r"[0134576@$!|+89](?:(?<=[a-z].)[a-z]|(?<![\w.,#$%-].)[a-z]{2})")
_SPARSE: Final = 150
_LONGEST_WORD: Final = 18
_LEET_I: Final = str.maketrans("0134576@$!|+8", "oieastgasiitb")
_LEET_L: Final = str.maketrans("0134579@$!|+8", "oleastgaslltb")

_SHAPES: Final = bytes(0x61 if (chr(b).isalnum() and b < 0x80) or b >= 0xC0 else 0x20 for b in range(256))
# As `_SHAPES`, but honest single letters, `a` and `i`, look different.
_SINGLES: Final = bytes(0x62 if b in b"ai" else _SHAPES[b] for b in range(256))
_CONTINUATIONS: Final = bytes(range(0x80, 0xC0))
_SPACED_SHAPES: Final = (b" a a a a a ", b" a  a  a  a  a ", b" a   a   a   a ")
_SPACED: Final = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]{1,4}[^\W_](?![^\W_])){4,}+")
_SPELT: Final = re.compile(r"(?:\\[^\\\n]){8,}+")
_SEPARATOR: Final = re.compile(r"[\W_]{1,4}")

_JAMO: Final = re.compile("([ㄱ-ㅎ])([ㅏ-ㅣ])(?:([ㄱ-ㄷㄹㅁㅂㅅㅇ-ㅎ])(?![ㅏ-ㅣ]))?")
_LEADS: Final = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_TAILS: Final = "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"

_BITS: Final = re.compile(r"(?<![\w+/])(?:[01]{8}[ ,]?){4,999}+")
_LONG_RUN: Final = bytes(0x61 if b < 0x80 and (chr(b).isalnum() or b in b"+/") else 0x20 for b in range(256))
_RUN: Final = b"a" * 20
_MAX_RUN: Final = 8000
_HEX: Final = re.compile("(?:[0-9a-fA-F]{2})+")
_MAX_DECODED: Final = 16


def fold(text: str) -> str:
    """Lower case, compatibility forms resolved, invisible characters gone. Look-alike letters of other scripts stay."""
    if text.isascii():
        return text.lower()
    data = text.encode("utf-8", "replace")
    if not data.translate(None, _USUAL):
        return data.lower().decode()  # the bytes of ASCII letters are lowered much faster than code points
    if b"\xe3\x84" in data or b"\xe3\x85" in data:
        text = _JAMO.sub(_syllable, text)
    if not is_normalized("NFKC", text):
        text = normalize("NFKC", text)
    return _INVISIBLE.sub("", text).lower()


def disguised(text: str, low: str, odd: int) -> Iterator[str]:
    """Other readings of a text that folds to `low` and has `odd` mangled words. None for one that looks plain."""
    data = low.encode("utf-8", "replace")
    if _has_lookalikes(data) and _MIXED.search(low):
        low = low.translate(_LOOKALIKES)
        yield low
    if odd * _SPARSE > len(low):
        yield low.translate(_LEET_I)
        yield low.translate(_LEET_L)
    if _spaced(data):
        yield _SPACED.sub(_close_up, low)
    yield from filter(None, map(_decoded, _encoded(text)))
    if "rot" in low and ("rot13" in low or "rot-13" in low):
        yield codecs.decode(low, "rot13")
    if "reverse" in low or "backward" in low:
        yield low[::-1]


def mangled(text: str) -> int:
    """How many words mix letters with digits, signs or another script's letters in the way of a disguise."""
    data = text.encode("utf-8", "replace")
    spelt = sum(len(run) // 4 for run in _SPELT.findall(text)) if "\\" in text else 0
    return _leet(text, data) + spelt + (len(_MIXED.findall(text)) if _has_lookalikes(data) else 0)


def _spaced(data: bytes) -> bool:
    if data.translate(_SINGLES, _CONTINUATIONS).count(b" a ") < 2:
        return False
    shape = b" %b " % data.translate(_SHAPES, _CONTINUATIONS)
    return any(spaced in shape for spaced in _SPACED_SHAPES)


def _has_lookalikes(data: bytes) -> bool:
    return not data.isascii() and bool(data.translate(None, _NO_LOOKALIKES))


def _leet(text: str, data: bytes) -> int:
    if _SPARSE * len(data.translate(None, _NO_LEET)) <= len(text):
        return 0
    shape = data.translate(_LEET_SHAPES)
    if _SPARSE * (shape.count(b"a1a") + shape.count(b"1aa")) <= len(text):
        return 0
    # Hashes and tokens are long; what people disguise are words.
    return sum(len(word) <= _LONGEST_WORD and _LEET_WORD.search(word) is not None for word in text.split())


def _encoded(text: str) -> Iterator[str]:
    """The first few runs that can be an encoding of something."""
    data = text.encode("utf-8", "replace")
    shape = data.translate(_LONG_RUN)
    at = shape.find(_RUN)
    bits = _BITS.search(text) if "0110" in text else None
    if bits:
        yield bits[0]
    for _ in range(_MAX_DECODED):
        if at < 0:
            return
        end = shape.find(b" ", at)
        end = len(data) if end < 0 else end
        yield data[at : min(end, at + _MAX_RUN)].decode()
        at = shape.find(_RUN, end)


def _syllable(jamo: re.Match[str]) -> str:
    lead, vowel, tail = jamo.groups()
    if lead not in _LEADS:
        return jamo[0]
    code = (_LEADS.index(lead) * 21 + ord(vowel) - ord("ㅏ")) * 28 + (_TAILS.index(tail) + 1 if tail else 0)
    return chr(0xAC00 + code)


def _close_up(run: re.Match[str]) -> str:
    """`i g n o r e` to `ignore`; wider gaps within a run are its word gaps."""
    narrow = min(map(len, _SEPARATOR.findall(run[0])))
    return _SEPARATOR.sub(lambda gap: "" if len(gap[0]) <= narrow else " ", run[0])


def _decoded(token: str) -> str:
    """What an encoded run says; empty when it is not text."""
    try:
        if set(token) <= set("01 ,"):
            data = bytes(int(byte, 2) for byte in re.findall("[01]{8}", token))
        elif _HEX.fullmatch(token):
            data = bytes.fromhex(token)
        else:
            data = binascii.a2b_base64(token + "=" * (-len(token) % 4))
        said = data.decode()
    except ValueError:
        return ""
    return said.lower() if said.replace("\n", " ").isprintable() else ""
