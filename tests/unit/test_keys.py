"""Keys from the environment and from files, and that nothing but a key itself ever shows one."""

import traceback
from pathlib import Path

import pytest

from ops.keys import KeyFileError, keys, sources

CANARY = "sk-canary-0123456789abcdef"
OTHER = "sk-other-fedcba9876543210"
NAMES = ("ANTHROPIC_API_KEY", "CLAUDE_API_KEY")


def plain(environ: dict[str, str]) -> list[str]:
    return [key.get_secret_value() for key in keys(NAMES, environ)]


@pytest.mark.parametrize("between", [",", ", ", " ", "\n", "\t,\n", ",,"])
def test_a_variable_may_hold_several(between: str) -> None:
    assert plain({"CLAUDE_API_KEY": f" {CANARY}{between}{OTHER}\n"}) == [CANARY, OTHER]


def test_all_variables_count_and_each_key_once(tmp_path: Path) -> None:
    file = tmp_path / "열쇠"
    file.write_text(f"# 첫째\n\n{OTHER}\r\n  third # a comment\n{CANARY}\n", encoding="utf-8")
    environ = {"ANTHROPIC_API_KEY": CANARY, "CLAUDE_API_KEY_FILE": str(file), "OPENAI_API_KEY": "another's"}
    assert plain(environ) == [CANARY, OTHER, "third"]
    assert [(source.variable, len(source.keys)) for source in sources(NAMES, environ)] == [
        ("ANTHROPIC_API_KEY", 1), ("CLAUDE_API_KEY_FILE", 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "empty", [{}, {"ANTHROPIC_API_KEY": ""}, {"CLAUDE_API_KEY": " , "}, {"CLAUDE_API_KEY_FILE": ""}]
)
def test_what_is_empty_is_not_set(empty: dict[str, str]) -> None:
    assert sources(NAMES, empty) == ()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read"),
        (b"", "holds no key"),
        (b"# " + CANARY.encode() + b"\n\n", "holds no key"),
        (CANARY.encode() + b" " + OTHER.encode(), "more than one key"),
        (CANARY.encode() + b"\xff", "is no text"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_not_shown(content: bytes | None, what: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(KeyFileError, match=what) as refused:
        keys(NAMES, {"CLAUDE_API_KEY_FILE": str(file)})
    said = repr(refused.value) + str(refused.value)
    assert "CLAUDE_API_KEY_FILE" in said
    assert str(file) in said
    assert "one key on a line" in said
    assert "canary" not in said
    assert "canary" not in "".join(traceback.format_exception(refused.value))


def test_a_key_shows_itself_nowhere() -> None:
    found = sources(NAMES, {"CLAUDE_API_KEY": f"{CANARY},{OTHER}"})
    assert "canary" not in f"{found} {found!r} {[str(key) for key in found[0].keys]}"
