"""A test tool from npm: installed from its lock once, and kept between runs."""

import fcntl
import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

NO_REGISTRY: Final = "ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH"


def installed(cache: pytest.Cache, package: Path) -> Path:
    """Where it is. Skips the test where npm, or the registry for the first installation, cannot be had."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm: install node 20 or newer")
    lock = hashlib.sha256((package / "package-lock.json").read_bytes()).hexdigest()
    directory = cache.mkdir(f"{package.name}-{lock[:12]}")
    with (directory / "lock").open("w") as lock_file:  # tests run side by side
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        if not (directory / "node_modules" / ".package-lock.json").exists():  # which npm writes last
            _install(package, directory)
    return directory


def _install(package: Path, directory: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(package / name, directory)
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(npm, cwd=directory, capture_output=True, text=True, check=False, timeout=60)
    if re.search(NO_REGISTRY, done.stderr):
        pytest.skip("npm reaches no package registry")
    assert done.returncode == 0, done.stderr
