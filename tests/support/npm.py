"""Scripts in JavaScript, installed from their lock and run."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.support import npm_package


async def command(directory: Path, *arguments: str) -> str:
    """What a command prints; it must succeed within a minute."""
    process = await asyncio.create_subprocess_exec(
        *arguments, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, err.decode()
    return out.decode()


def installed(cache: pytest.Cache, scripts: Path) -> Path:
    """Where the scripts are, beside what they need. Skips where that cannot be had."""
    if shutil.which("node") is None:
        pytest.skip("there is no node")
    directory = npm_package.installed(cache, scripts)
    for script in scripts.glob("*.mjs"):
        shutil.copy(script, directory)
    return directory


def assert_lock_names_no_registry(scripts: Path) -> None:
    lock = json.loads((scripts / "package-lock.json").read_text(encoding="utf-8"))
    packages = [package for path, package in lock["packages"].items() if path]
    assert packages
    assert all("resolved" not in package and package["integrity"].startswith("sha512-") for package in packages)
