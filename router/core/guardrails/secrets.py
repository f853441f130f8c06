"""Finds credentials in prompts, with spans exact enough that redacting them leaves the rest of the text whole."""

import re
from collections.abc import Iterator
from math import log2
from typing import Final, NamedTuple

from router.core.guardrails.base import Match, Span
from router.core.guardrails.secret_formats import DISCORD, FORMATS, URL_PASSWORD, Format

_SHORTEST: Final = 18
_WORDS: Final = bytes(
    byte if (chr(byte).isalnum() and byte < 0x80) or byte in b"_-.:~" else 0x20 for byte in range(256)
)
_RUNS: Final = bytes(0x61 if byte != 0x20 else 0x20 for byte in _WORDS)
_RUN: Final = b"a" * _SHORTEST

_PEM: Final = "-----BEGIN "
_PEM_HEAD: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_KEY_LINES: Final = re.compile(r"(?:[^A-Za-z0-9-]{0,8}+[A-Za-z0-9+/=]{24,}+)*+")
_KEY_BYTES: Final = re.compile(r"[A-Za-z0-9+/=]{24}")

_NAMES: Final = ("pass", "pwd", "pw", "secret", "token", "key", "credential")
_NAMES_KO: Final = ("비밀번호", "비번", "암호", "패스워드", "시크릿", "토큰", "키")
_LAST_KO: Final = ("호", "번", "드", "릿", "큰", "키")
_PASSWORD_NAMES: Final = ("pass", "pw", "비밀번호", "비번", "암호", "패스워드")
_VAGUE: Final = ("key", "token", "토큰")
_ASSIGNED: Final = re.compile(
    # The names come first and plain, with their left boundary checked after them: that lets the search skip ahead.
    r"""(?P<name>passw(?:ord|d)|passphrase|passcode|pass(?<![a-z]pass)|pwd|pw(?<![a-z]pw)|비밀번호|비번|암호|패스워드
         |secret|token|credential|api[ _-]?key|access[ _-]?key|auth[ _-]?key|account[ _-]?key|master[ _-]?key|key
         |encryption[ _-]?key|signing[ _-]?key|private[ _-]?key|시크릿|토큰|인증\s?키|api\s?키)
        (?:[_-][a-z0-9_-]{1,20}+)?["'\]]{0,2}
        (?:[ \t]{0,3}(?::=|=>|[:=]|(?<=[ \t])is(?=[ \t]))|(?<=[가-힣])[은는이가]?(?=[ \t]))[ \t]{0,3}["'`]?
        (?=(?P<value>[^\s"'`<>(){}\[\],;\u0080-\U0010ffff]{6,200})(?P<next>[(\[]?))""",
    re.VERBOSE,
)

# What can stand between a name and its value, and how far around a name an assignment reaches.
_LEADS_ON: Final = re.compile(
    r"[a-z0-9_-]{0,25}+[\"'\]]{0,2}(?:[ \t]{0,3}(?:[:=]|is[ \t])|(?<=[가-힣])[은는이가]?[ \t])"
)
_NAME_STARTS: Final = 12
_REACH: Final = 260

_PLACEHOLDER_WORDS: Final = [
    "example",
    "your",
    "change_me",
    "changeme",
    "change-me",
    "placeholder",
    "dummy",
    "sample",
    "redacted",
    "insert",
    "replace",
    "xxxx",
    "my_secret",
    "my_token",
    "my-secret",
    "my-token",
    "my_key",
    "my-key",
    "mypass",
    "abcdefgh",
]
_PLACEHOLDER: Final = re.compile(
    "|".join(form for word in _PLACEHOLDER_WORDS for form in (word, word.upper(), word.title()))
    + r"|\*\*\*|\.\.\.|\$\{|\$\(|\{\{|%\(|process\.env|environ|getenv|import\.meta|123456789|0000000"
)
_WEAK_WORDS: Final = frozenset(
    [
        "password",
        "passwd",
        "pass",
        "pwd",
        "pw",
        "secret",
        "token",
        "key",
        "test",
        "testing",
        "user",
        "username",
        "admin",
        "root",
        "guest",
        "postgres",
        "mysql",
        "mongo",
        "redis",
        "none",
        "null",
        "undefined",
        "true",
        "false",
        "string",
        "default",
        "empty",
        "demo",
        "foo",
        "bar",
        "changeme",
        "hunter2",
        "<password>",
        "required",
        "optional",
    ]
)
_LOOKALIKE: Final = re.compile(
    r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|sha\d{1,3}[-:].*|md5[-:].*|data:.*|https?:.*|[a-z]{2,12}://.*|"
    r"ssh-.*|aaaa[bce].*|[a-z]{2,12}[-_][a-z0-9]{8,24}|(?:[a-z_][a-z0-9_]*\.)+[a-z_][a-z0-9_]*|[./@~].*|.*/.*\.[a-z].*"
)
_SMALL, _CAPITAL, _DIGIT, _OTHER = (re.compile(kind) for kind in ("[a-z]", "[A-Z]", "[0-9]", "[^a-zA-Z0-9]"))
_HASH: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{128}|[0-9.:-]+")
# The signature of the example that jwt.io and half of all tutorials show.
_DOCS: Final = ("SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c", "TJVA95OrM7E2cBab30RMHrHDcEfxjoYZgeFONFh7HgQ")


class _Hit(NamedTuple):
    start: int
    doubt: float
    """1 - score, so that of two that start together the surer one sorts first."""
    end: int
    code: str


def secrets(text: str) -> Iterator[Match]:
    """Of overlapping candidates only one is reported: the first, and of several there the surest."""
    reached = 0
    for hit in sorted(_hits(text)):
        if hit.start >= reached:
            reached = hit.end
            yield Match(hit.code, round(1 - hit.doubt, 3), Span(hit.start, hit.end))


def _hits(text: str) -> Iterator[_Hit]:
    if _PEM in text:
        yield from _private_keys(text)
    if "://" in text:
        yield from _url_passwords(text)
    long_words = _long_words(text)
    if long_words:
        for known in FORMATS:
            place = text if known.in_context else long_words
            for mark in known.marks:
                if mark in place:
                    yield from _tokens(text, mark, known)
        yield from (_Hit(m.start(), 0.1, m.end(), "discord_token") for m in DISCORD.finditer(text))
    yield from _assignments(text)


def _long_words(text: str) -> str:
    """The runs of token characters that could hold a provider's token: next to nothing in prose."""
    data = text.encode("ascii", "replace")
    if _RUN not in data.translate(_RUNS):
        return ""
    return b" ".join(word for word in data.translate(_WORDS).split() if len(word.strip(b"-._~:")) >= _SHORTEST).decode()


def _private_keys(text: str) -> Iterator[_Hit]:
    for head in _PEM_HEAD.finditer(text):
        dashes = text.find("-----", head.end())
        if text.startswith("-----END ", dashes):
            end = text.find("-----", dashes + 9, dashes + 60) + 5
        else:  # cut off: as far as it still looks like base64
            body = _KEY_LINES.match(text, head.end())
            end = body.end() if body else head.end()
        if _KEY_BYTES.search(text, head.end(), end):
            yield _Hit(head.start(), 0.01, end, "private_key")


def _tokens(text: str, mark: str, known: Format) -> Iterator[_Hit]:
    group = known.pattern.groups
    at = text.find(mark)
    while at >= 0:
        found = known.pattern.match(text, max(at - known.back, 0))
        if found is not None and not _placeholder(found[group]) and not found[group].endswith(_DOCS):
            yield _Hit(found.start(group), 1 - known.score, found.end(group), known.code)
        at = text.find(mark, at + len(mark))


def _url_passwords(text: str) -> Iterator[_Hit]:
    for found in URL_PASSWORD.finditer(text):
        user = text[found.start() + 3 : found.start(1) - 1]
        if found[1].lower() not in {*_WEAK_WORDS, user.lower()} and not _PLACEHOLDER.search(found[1]):
            yield _Hit(found.start(1), 0.15, found.end(1), "url_password")


def _assigned(text: str) -> Iterator[re.Match[str]]:
    """The assignments: only what follows a name is looked at, as names are far rarer than what could follow."""
    names: tuple[str, ...] = _NAMES if ":" in text or "=" in text or "is" in text else ()
    if not text.isascii() and any(last in text for last in _LAST_KO):
        names += _NAMES_KO
    if not names:
        return
    low, passed = _lower(text), 0
    for at, end in sorted((at, at + len(name)) for name in names for at in _places(low, name)):
        if _LEADS_ON.match(low, end):
            found = _ASSIGNED.search(low, max(at - _NAME_STARTS, passed), end + _REACH)
            if found:
                yield found
        passed = end


def _places(text: str, part: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + len(part))


def _assignments(text: str) -> Iterator[_Hit]:
    for found in _assigned(text):
        low = found.string
        start, end = found.span("value")
        end = start + len(low[start:end].rstrip(".:*"))
        value = text[start:end]
        if found["next"] or _placeholder(value) or _LOOKALIKE.fullmatch(low[start:end]):
            continue
        if found["name"].startswith(_PASSWORD_NAMES):
            if _password_like(value):
                yield _Hit(start, 0.35, end, "password")
        elif _random_like(value) and not (found["name"] in _VAGUE and _HASH.fullmatch(value)):
            yield _Hit(start, 0.35, end, "generic_key")


def _password_like(value: str) -> bool:
    """Nobody's word and nobody's identifier: letters and digits mixed, or three kinds of characters."""
    kinds = _kinds(value)
    enough = kinds >= 3 or (kinds == 2 and _DIGIT.search(value) is not None and "_" not in value)
    return enough and 8 <= len(value) <= 64 and _entropy(value) > 2.4


def _random_like(value: str) -> bool:
    return len(value) >= 16 and _kinds(value) >= 2 and _DIGIT.search(value) is not None and _entropy(value) > 3.2


def _kinds(value: str) -> int:
    """How many of: small letters, capitals, digits, other characters."""
    return sum(kind.search(value) is not None for kind in (_SMALL, _CAPITAL, _DIGIT, _OTHER))


def _entropy(value: str) -> float:
    """Bits per character."""
    shares = (value.count(c) / len(value) for c in set(value))
    return -sum(share * log2(share) for share in shares)


def _placeholder(value: str) -> bool:
    low = value.lower()
    return low in _WEAK_WORDS or len(set(low)) <= 4 or _PLACEHOLDER.search(value) is not None


def _lower(text: str) -> str:
    """In lower case and of the same length, so that positions carry over; a few capitals grow when lowered."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
