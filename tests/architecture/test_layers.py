"""The house stands as drawn: floors, package names that are ours, light long-running processes, a locked supply."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("subjects", "schemas", "router", "adapters", "ops")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_imports_go_downward_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0, capsys.readouterr().out


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_names_are_ours(package: str) -> None:
    assert set(packages_distributions().get(package, ["llmbus"])) == {"llmbus"}
    module = subprocess.run(
        [sys.executable, "-c", f"import {package}; print(*{package}.__path__)"],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert Path(module.stdout.strip()) == ROOT / package


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh process has after `code`."""
    names = "sorted({name.partition('.')[0] for name, module in sys.modules.items() if module is not None})"
    script = f"{code}\nimport json, sys; print(json.dumps({names}))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(ended.stdout.splitlines()[-1]))


HEAVY = {"httpx", "rich", "pygments", "markdown_it", "aiohttp", "requests", "testcontainers", "pytest", "hypothesis"}


def test_a_router_process_carries_no_terminal_and_no_http_client() -> None:
    """As `llmbus router` starts: it keeps rich away, which structlog would take where it is installed."""
    assert loaded("from ops.commands import roles; roles._without_rich(); import ops.router, ops.edge") & HEAVY == set()


def test_a_router_is_made_of_light_parts() -> None:
    services = "router.dispatcher, router.settler, router.sweeper, router.world_book, adapters.bus, adapters.ask"
    modules = loaded(f"import sys; sys.modules['rich'] = None; import {services}")
    assert modules & {*HEAVY, "typer", "yaml", "psutil", "ops"} == set()


def test_the_decisions_know_no_clock_no_chance_and_no_network() -> None:
    core = sorted(
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "router/core").rglob("*.py")
    )
    script = "; ".join(f"import {name.removesuffix('.__init__')}" for name in core)
    assert loaded(script) & {"nats", "structlog", "httpx", "uvloop"} == set()


def test_nothing_is_installed_that_is_not_locked_by_hash() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) > 10
    for line in lines:
        assert re.match(r"[a-z0-9._-]+==\S+", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
        assert "://" not in line, line


def test_what_the_project_needs_is_locked() -> None:
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M))
    needed = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    assert {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in needed} <= locked


def test_direct_dependencies_are_few() -> None:
    assert len(PROJECT["project"]["dependencies"]) <= 15
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(PACKAGES)
