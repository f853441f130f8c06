"""The `llmbus` command as its users run it: real processes, what they print and how they end."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

LLMBUS = str(Path(sys.executable).with_name("llmbus"))
SECRETS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "CLAUDE_API_KEY")
ENVIRON = {
    name: value
    for name, value in os.environ.items()
    if name.removesuffix("_FILE") not in (*SECRETS, "NATS_URL", "LLMBUS_HOME", "COLUMNS")
}
PATIENCE_S = 30.0
NODES = {"macbook", "macmini", "cloud"}
UP = ("up", "--port", "-1", "--http-port", "0")


def llmbus(*arguments: str, url: str | None = None, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = ENVIRON | ({"NATS_URL": url} if url else {})
    return subprocess.run(
        [LLMBUS, *arguments], capture_output=True, text=True, timeout=60, env=environ, input=stdin, check=False
    )


def answer(*arguments: str, url: str | None = None, code: int = 0, stdin: str | None = None) -> Any:
    """What `--json` prints, parsed."""
    ran = llmbus(*arguments, "--json", url=url, stdin=stdin)
    assert ran.returncode == code, ran.stderr
    return json.loads(ran.stdout)


def refusal(*arguments: str, url: str | None = None) -> str:
    """The message of a command that fails as it should."""
    ran = llmbus(*arguments, url=url)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    return ran.stderr


@contextmanager
def running(*arguments: str, url: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A command that stays; ended with the context."""
    environ = ENVIRON | ({"NATS_URL": url} if url else {})
    with subprocess.Popen(
        [LLMBUS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, env=environ
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=PATIENCE_S)


def line(stream: IO[bytes] | None) -> str:
    """The next line, soon. The pipe is unbuffered, so what `select` sees is all there is."""
    assert stream is not None
    ready, _, _ = select.select([stream], [], [], PATIENCE_S)
    assert ready, "it says nothing"
    return stream.readline().decode()


def ready(up: subprocess.Popen[bytes]) -> Any:
    """What `up --json` prints once it is ready."""
    said = line(up.stdout)
    assert said, up.stderr.read() if up.stderr else ""
    return json.loads(said)


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def family(up: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(up.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
