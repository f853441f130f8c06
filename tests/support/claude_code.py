"""Claude Code, headless, as a client of whatever speaks Anthropic's dialect (npm, proprietary: a test tool only)."""

import asyncio
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.npm_package import installed

PACKAGE: Final = Path(__file__).parents[1] / "peers" / "claude_code"
MACHINES: Final = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
PATIENCE_S: Final = 60


@dataclass(frozen=True, slots=True)
class Told:
    """What a headless run has said: its events, the last of which is the result."""

    events: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        return self.events[-1]

    def blocks(self, kind: str) -> list[dict[str, Any]]:
        """The content blocks of that type, in order."""
        contents = [event["message"]["content"] for event in self.events if event["type"] in {"assistant", "user"}]
        return [
            block for content in contents if isinstance(content, list) for block in content if block["type"] == kind
        ]


@dataclass(frozen=True, slots=True)
class ClaudeCode:
    binary: Path
    home: Path
    """Its own, and where it works."""

    async def ask(self, base_url: str, prompt: str, *more: str, model: str) -> Told:
        """One headless run that may use the shell; `more` are options."""
        told = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "ANTHROPIC_BASE_URL": base_url,
            "ANTHROPIC_AUTH_TOKEN": "dummy",
            "ANTHROPIC_MODEL": model,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        options = ("--output-format", "stream-json", "--verbose", "--allowedTools", "Bash", *more)
        process = await asyncio.create_subprocess_exec(
            self.binary, "-p", prompt, *options, env=told, cwd=self.home, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(PATIENCE_S):
                out, err = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        lines = out.decode().splitlines()
        assert lines, err.decode()
        return Told([json.loads(line) for line in lines])


def claude_code(cache: pytest.Cache, home: Path) -> ClaudeCode:
    """Skips the test where it cannot be had."""
    machine = MACHINES.get(platform.machine().lower())
    if sys.platform not in {"linux", "darwin"} or machine is None:
        pytest.skip(f"Claude Code is not looked for on {sys.platform} {platform.machine()}")
    directory = installed(cache, PACKAGE)
    binary = directory / "node_modules" / "@anthropic-ai" / f"claude-code-{sys.platform}-{machine}" / "claude"
    if not binary.exists():
        pytest.skip(f"npm installed no Claude Code for {sys.platform} {machine}")
    return ClaudeCode(binary, home)
