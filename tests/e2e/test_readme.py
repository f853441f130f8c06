"""The README is true: its code runs as it is printed, its commands and options exist, its tables are complete."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops.edge import edge
from schemas import Policy
from schemas import headers as h
from schemas.failure import RETRYABLE, ErrorType
from schemas.request import LlmRequest
from tests.support.nats_server import OwnBroker
from tests.support.npm import command, installed
from tests.support.running_bus import running_bus

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
URL = "nats://127.0.0.1:4222"
GROUPS = ("policy", "key")
HTTP = "http://127.0.0.1:8484"
LLMBUS = str(Path(sys.executable).with_name("llmbus"))
WIDE = {**os.environ, "COLUMNS": "200"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """What stands under a heading, up to the next."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {title!r}"
    return found[1]


def names(title: str) -> set[str]:
    """The names in the first column of the tables of a section."""
    first = (line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `"))
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def commands() -> list[str]:
    """Every `llmbus ...` that the README names, in text or in a block."""
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    quoted = re.findall(r"`(?:[A-Z_]+=\S+ )*(llmbus [^`]+)`", prose)
    shown = re.findall(r"^    (?:\$ )?(?:[A-Z_]+=\S+ )*(llmbus .+)$", prose, re.MULTILINE)
    return sorted({*quoted, *shown} - {"llmbus --debug ..."})


async def test_the_python_code_runs_as_it_is_printed(broker: OwnBroker) -> None:
    shown = blocks("python")
    assert len(shown) >= 5
    async with running_bus(broker.url), edge(broker.url, port=0) as http:
        for code in shown:
            assert (URL in code) != (HTTP in code)
            here = code.replace(URL, broker.url).replace(HTTP, http)
            printed = await command(ROOT, sys.executable, "-W", "error", "-c", here)
            assert printed.strip(), code
            assert "no model answered" in printed or "refused" in printed, printed
            assert "'type': " not in printed, printed


async def test_the_curl_commands_run_as_they_are_printed(broker: OwnBroker) -> None:
    (shown,) = (block for block in blocks("sh") if block.startswith("curl"))
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    async with running_bus(broker.url), edge(broker.url, port=0) as http:
        printed = await command(ROOT, "sh", "-c", shown.replace(HTTP, http))
    assert "no model answered" in printed
    assert printed.rstrip().endswith("data: [DONE]")


async def test_the_durable_example_may_be_run_again(broker: OwnBroker) -> None:
    (code,) = (code.replace(URL, broker.url) for code in blocks("python") if "greeting-1" in code)
    async with running_bus(broker.url):
        first, again = [(await command(ROOT, sys.executable, "-c", code)).splitlines() for _ in range(2)]
    assert first[1:] == again[1:]
    assert first[-1] == "ok"


@pytest.mark.node
async def test_the_javascript_code_runs_as_it_is_printed(broker: OwnBroker, pytestconfig: pytest.Config) -> None:
    assert pytestconfig.cache is not None
    scripts = installed(pytestconfig.cache, ROOT / "tests/e2e/js")
    shown = blocks("javascript")
    assert len(shown) == 2
    async with running_bus(broker.url):
        for number, code in enumerate(shown):
            (scripts / f"readme{number}.mjs").write_text(code.replace(URL, broker.url), encoding="utf-8")
            assert "no model answered" in await command(scripts, "node", f"readme{number}.mjs")


@pytest.mark.parametrize("line", commands())
def test_every_command_and_option_exists(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    group = 2 if words[0] in GROUPS and len(words) > 1 else 1
    helped = subprocess.run(
        [LLMBUS, *words[:group], "--help"], capture_output=True, text=True, timeout=30, env=WIDE, check=False
    )
    assert helped.returncode == 0, helped.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in helped.stdout


def test_every_command_is_named() -> None:
    table = section("The command line")
    for group in ((), *((each,) for each in GROUPS)):
        helped = subprocess.run(
            [LLMBUS, *group, "--help"], capture_output=True, text=True, timeout=30, env=WIDE, check=True
        ).stdout
        for name in re.findall(r"^  ([a-z]+) ", helped.partition("Commands:")[2], re.MULTILINE):
            assert f"`llmbus {' '.join((*group, name))}" in table, name


@pytest.mark.parametrize("target", re.findall(r"^    make ([a-z]+)", README, re.MULTILINE))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", re.findall(r"`((?:subjects|schemas|router|adapters|ops|tests)/[^`*]*)`", README))
def test_every_path_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_tables_are_complete() -> None:
    assert names("The request") == {*LlmRequest.model_fields}
    assert names("Error types") == {kind.value for kind in ErrorType}
    assert names("Configuration") >= {*Policy.model_fields}
    told = {h.REQUEST_ID, h.REQUEST_HASH, h.CLIENT, h.STATUS, h.ERROR, h.MODEL, h.NODE, h.PROVIDER, h.COST_USD,
            h.WASTED_USD,
            h.LATENCY_MS, h.QUEUE_MS, h.TTFT_MS, h.TOKENS_IN, h.TOKENS_OUT, h.ATTEMPTS, h.DECISION, h.POLICY,
            h.TRACEPARENT}  # fmt: skip
    assert names("Reply headers") == told


def test_what_is_called_retryable_is() -> None:
    rows = (line for line in section("Error types").splitlines() if line.startswith("| `"))
    yes = {name for row in rows if row.endswith("| yes |") for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert yes | {"rate_limited"} == {kind.value for kind in RETRYABLE}
