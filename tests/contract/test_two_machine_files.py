"""What ops/ gives for two machines holds: nats-server takes its files, launchd's and systemd's commands are real."""

import configparser
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops.broker import server_path

OPS = Path(__file__).resolve().parents[2] / "ops"
PAGE = (OPS / "docs/two-machines.md").read_text(encoding="utf-8")
LLMBUS = str(Path(sys.executable).with_name("llmbus"))
ROLES = ("nats", "router", "node", "edge")
SETTINGS = "NATS_URL=nats://169.254.19.104:4222\nLLMBUS_NODE=macmini\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """As the page leaves it, with programs that say how they were called."""
    for directory in (".local/bin", ".local/share/llmbus-hub", ".config/llmbus", "Library/Logs"):
        (tmp_path / directory).mkdir(parents=True)
    for program in ("llmbus", "nats-server"):
        path = tmp_path / ".local/bin" / program
        path.write_text('#!/bin/sh\nprintf "%s\\n" "${NATS_URL-}" "$0" "$@"\necho "on stderr" >&2\n')
        path.chmod(0o755)
    (tmp_path / ".config/llmbus/env").write_text(SETTINGS)
    return tmp_path


def launched(role: str, home: Path) -> list[str]:
    """What launchd's command ends in: NATS_URL, the program and its words. Its stderr is in the role's log."""
    plist = plistlib.loads((OPS / f"launchd/llmbus.{role}.plist").read_bytes())
    assert plist["Label"] == f"llmbus.{role}"
    assert plist["KeepAlive"] is plist["RunAtLoad"] is True
    ended = subprocess.run(
        plist["ProgramArguments"], env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (home / f"Library/Logs/llmbus-{role}.log").read_text() == "on stderr\n"
    return ended.stdout.splitlines()


def unit(role: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, delimiters="=")
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string((OPS / f"systemd/llmbus-{role}.service").read_text(encoding="utf-8"))
    return parsed


@pytest.mark.parametrize("name", ["nats", "hub", "leaf"])
def test_nats_server_takes_the_configuration(name: str) -> None:
    ended = subprocess.run(
        [server_path(), "-t", "-c", str(OPS / f"nats/{name}.conf")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("role", ROLES)
def test_launchd_and_systemd_start_the_same(role: str, home: Path) -> None:
    service = unit(role)["Service"]
    line = service["ExecStart"].replace("%h", str(home)).replace("${LLMBUS_NODE}", "macmini")
    url, *command = launched(role, home)
    assert command == shlex.split(line)
    assert url == ("" if role == "nats" else "nats://169.254.19.104:4222")
    assert service.get("EnvironmentFile") == (None if role == "nats" else "%h/.config/llmbus/env")


@pytest.mark.parametrize("role", ["router", "node", "edge"])
def test_llmbus_knows_what_it_is_started_with(role: str, home: Path) -> None:
    words = launched(role, home)[2:]
    assert words[0] == role
    subprocess.run([LLMBUS, *words, "--help"], capture_output=True, check=True)


def test_nats_server_knows_what_it_is_started_with(home: Path) -> None:
    shutil.copy(OPS / "nats/hub.conf", home / ".config/llmbus/nats.conf")
    subprocess.run([server_path(), "-t", *launched("nats", home)[2:]], capture_output=True, check=True)


@pytest.mark.parametrize("role", ROLES)
def test_systemd_takes_the_unit(role: str, home: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    ended = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(OPS / f"systemd/llmbus-{role}.service")],
        env={**os.environ, "HOME": str(home), "XDG_RUNTIME_DIR": str(home)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("role", ["node", "edge"])
def test_what_runs_is_given_the_time_to_finish(role: str) -> None:
    plist = plistlib.loads((OPS / f"launchd/llmbus.{role}.plist").read_bytes())
    assert plist["ExitTimeOut"] == int(unit(role)["Service"]["TimeoutStopSec"]) > 30


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^ +(llmbus .+)$|`(llmbus [a-z][^`]*)`", PAGE, re.MULTILINE))))
def test_every_command_of_the_page_exists(line: tuple[str, str]) -> None:
    words = shlex.split(line[0] or line[1])[1:]
    helped = subprocess.run(
        [LLMBUS, *words, "--help"], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
    )
    assert helped.returncode == 0, helped.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in helped.stdout


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\b(?:ops|tests)/[\w./*-]*[\w*]", PAGE))))
def test_every_file_of_the_page_is_there(path: str) -> None:
    assert list(OPS.parent.glob(path))
