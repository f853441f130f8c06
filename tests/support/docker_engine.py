"""What tests marked `docker` need: an engine and images, or the reason why not."""

import shutil
import subprocess

import pytest


def need_image(name: str) -> None:
    """Skip, saying why, without a Docker engine that has or can get this image."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command")
    if _docker("info").returncode != 0:
        pytest.skip("no Docker engine answers; start one or set DOCKER_HOST")
    if _docker("image", "inspect", name).returncode != 0 and (pull := _docker("pull", "--quiet", name)).returncode != 0:
        pytest.skip(f"the image {name} cannot be had: {pull.stderr.strip()[-200:]}")


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=100, check=False)
