"""The parts of a bus as processes: how they start, what is killed comes back, and they end when they are told."""

import json
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.command import (
    ENVIRON,
    LLMBUS,
    PATIENCE_S,
    UP,
    answer,
    eventually,
    family,
    gone,
    line,
    llmbus,
    ready,
    refusal,
    running,
)
from tests.support.nats_server import OwnBroker


def test_up_and_down(tmp_path: Path) -> None:
    with running(*UP, "--store", str(tmp_path), "--json") as up:
        url, http = (facts := ready(up))["url"], facts["http"]
        started = family(up)
        asked = {"messages": [{"role": "user", "content": "안녕"}]}
        with httpx.Client(trust_env=False) as client:
            body = client.post(f"{http}/v1/chat/completions", json=asked).json()
        assert body["choices"][0]["message"]["content"].endswith("안녕")
        assert f"in use by process {up.pid}" in refusal(*UP, "--store", str(tmp_path))
        port = url.rpartition(":")[2]
        assert "--port" in refusal("up", "--store", str(tmp_path / "other"), "--port", port, "--http-port", "0")
        node = next(process for process in started if "macbook" in process.cmdline())
        broker = next(process for process in started if "nats-server" in process.cmdline()[0])
        for killed in (node, broker):
            killed.kill()
            said = ""
            while "runs again" not in said:
                said = line(up.stderr)
        answer("ask", "Still there?", "--deadline-ms", "20000", url=url)
        started = family(up)
        up.send_signal(signal.SIGINT)
        assert up.wait(PATIENCE_S) == 0
    assert gone(started)


def test_up_refuses_what_it_would_have_to_ignore_and_shows_no_password() -> None:
    url = "nats://me:canary@127.0.0.1:9"
    for wrong in (["--port", "4333", "--nats-url", url], ["--http-port", "-1"], ["--nats-url", "http://x"]):
        ran = llmbus("up", *wrong)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert wrong[0] in ran.stderr
        assert "canary" not in ran.stderr


def test_up_with_keys_answers_over_http_only_who_shows_one(tmp_path: Path) -> None:
    with running(*UP, "--store", str(tmp_path), "--keys", "--json") as up, httpx.Client(trust_env=False) as client:
        url, http = (facts := ready(up))["url"], facts["http"]
        key = answer("key", "create", "gm", url=url)["key"]
        assert client.post(f"{http}/route", json={"prompt": "안녕"}).status_code == 401

        def opens() -> bool:
            shown = {"authorization": f"Bearer {key}"}
            return client.post(f"{http}/route", json={"prompt": "안녕"}, headers=shown).status_code == 200

        eventually(opens, "the key opens nothing")


def test_nothing_outlives_an_up_that_is_killed(tmp_path: Path) -> None:
    with running(*UP, "--store", str(tmp_path), "--json") as up:
        ready(up)
        started = family(up)
        assert len(started) == 7  # the broker and its guard, the router, the edge, three nodes
        up.kill()
    eventually(lambda: gone(started), "something lives on")


def test_roles_end_when_they_are_told(nats_url: str) -> None:
    with running("router", url=nats_url) as router, running("node", "macbook", "--stand-in", url=nats_url) as node:
        assert "router.ready" in line(router.stderr)
        assert json.loads(line(node.stderr))["event"] == "node.ready"
        for role in (node, router):
            role.send_signal(signal.SIGTERM)
            assert role.wait(PATIENCE_S) == 0
    assert "the policy has no node 'nowhere'" in refusal("node", "nowhere", url=nats_url)


@pytest.mark.parametrize("words", [("router",), ("node", "macbook"), ("edge", "--port", "0")])
def test_a_role_that_still_looks_for_its_bus_ends_when_it_is_told(words: tuple[str, ...]) -> None:
    with running(*words, url="nats://127.0.0.1:9") as role:
        assert "bus.error" in line(role.stderr)
        role.send_signal(signal.SIGINT)
        _, said = role.communicate(timeout=PATIENCE_S)
    assert role.returncode == 0
    assert "no nats-server answers" not in said.decode()


def test_a_node_with_a_bad_file_of_keys_does_not_start_and_shows_no_key(nats_url: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-canary sk-canary-2\n")
    environ = ENVIRON | {"NATS_URL": nats_url, "OPENAI_API_KEY_FILE": str(tmp_path / "keys")}
    ran = subprocess.run(
        [LLMBUS, "node", "cloud"], capture_output=True, text=True, env=environ, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"OPENAI_API_KEY_FILE names {tmp_path}/keys" in ran.stderr
    assert "sk-canary" not in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("role", [("router",), ("node", "macbook", "--stand-in"), ("edge", "--port", "0")])
def test_a_role_whose_bus_is_gone_ends_in_good_order(broker: OwnBroker, role: tuple[str, ...]) -> None:
    with running(*role, url=broker.url) as process:
        assert f"{role[0]}.ready" in line(process.stderr)
        broker.kill()
        while "bus.disconnected" not in line(process.stderr):
            pass
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert b"Traceback" not in said
