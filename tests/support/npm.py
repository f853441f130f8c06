"""Scripts in JavaScript, installed from their lock and run."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest


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


async def installed(scripts: Path, directory: Path) -> Path:
    """A copy of the scripts within `directory`, with what they need. Skips where that cannot be had."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    copy = directory / scripts.name
    shutil.copytree(scripts, copy, ignore=shutil.ignore_patterns("node_modules"))
    try:
        await command(copy, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    except AssertionError as error:
        if re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH", str(error)):
            pytest.skip("npm reaches no package registry")
        raise
    return copy


def assert_lock_names_no_registry(scripts: Path) -> None:
    lock = json.loads((scripts / "package-lock.json").read_text(encoding="utf-8"))
    packages = [package for path, package in lock["packages"].items() if path]
    assert packages
    assert all("resolved" not in package and package["integrity"].startswith("sha512-") for package in packages)
