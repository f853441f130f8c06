"""The checks of `llmbus doctor`: each gives ok, warn or fail, what it found, and the remedy."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import nats.errors
from rich.text import Text

from adapters.bus import JetStreamBus, connect, without_secrets
from ops.bench import Bench
from ops.broker import BrokerError, server_path
from ops.keys import FILE, KeyFileError, sources
from ops.policy_file import PolicyError, load_policy
from ops.policy_in_force import policy_store, shipped_policy
from ops.policy_store import RevisionNotFoundError
from router.errors import UnavailableError
from schemas.policy import Policy
from subjects.streams import BUCKETS, STREAMS

LOW_DISK_GB = 5
VERSION_S = 5
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


class Check(NamedTuple):
    name: str
    state: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""

    def mark(self) -> Text:
        return Text(self.state, COLOURS[self.state])


async def examine(url: str, store: Path) -> list[Check]:
    policy, bus_checks = await _bus(url)
    models = await _models(policy)
    return [*_machine(store), *bus_checks, *models, *_keys(policy), *_optional()]


def _machine(store: Path) -> Iterator[Check]:
    yield Check("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")
    try:
        path = server_path()
    except BrokerError as error:
        yield Check("nats-server", "fail", "not found", str(error))
    else:
        version = _version(path, "--version").removeprefix("nats-server: ")
        yield Check("nats-server", "ok", f"{version} at {path}")
    there = next(path for path in (store, *store.parents) if path.exists())
    free_gb = shutil.disk_usage(there).free / 1e9
    low = free_gb < LOW_DISK_GB
    remedy = "free some, or choose another store with --store or LLMBUS_HOME" if low else ""
    yield Check("disk", "warn" if low else "ok", f"{free_gb:.0f} GB free for {store}", remedy)


async def _bus(url: str) -> tuple[Policy, list[Check]]:
    """The checks of the bus, and the policy that is active there, or else the shipped one."""
    shipped = load_policy(shipped_policy(), "ops/policy.yaml")
    try:
        async with connect(url, name="llmbus doctor", wait_s=2) as client:
            server = str(client.connected_server_version).strip("<>")
            checks = [Check("bus", "ok", f"{server} at {without_secrets(url)}")]
            try:
                info = await client.jetstream().streams_info()
            except (nats.errors.Error, TimeoutError):
                remedy = "start nats-server with -js, or use `llmbus up`"
                return shipped, [*checks, Check("jetstream", "fail", "not enabled", remedy)]
            checks.append(Check("jetstream", "ok", f"enabled, {len(info)} streams"))
            wanted = {spec.name for spec in STREAMS} | {f"KV_{spec.name}" for spec in BUCKETS}
            if missing := sorted(wanted - {each.config.name or "" for each in info}):
                remedy = "a router makes them when it starts: `llmbus router`, or `llmbus up`"
                return shipped, [*checks, Check("streams", "fail", f"missing: {', '.join(missing)}", remedy)]
            checks.append(Check("streams", "ok", "all there"))
            return await _policy(JetStreamBus(client), shipped, checks)
    except UnavailableError as error:
        remedy = "start one with `llmbus up`, or set NATS_URL"
        return shipped, [
            Check("bus", "fail", f"nothing answers at {without_secrets(url)}", remedy if str(error) else "")
        ]


async def _policy(bus: JetStreamBus, shipped: Policy, checks: list[Check]) -> tuple[Policy, list[Check]]:
    try:
        active = await (await policy_store(bus)).active()
    except (PolicyError, RevisionNotFoundError) as error:
        remedy = "go back to a good one with `llmbus policy rollback N`"
        return shipped, [*checks, Check("policy", "fail", str(error).splitlines()[0], remedy)]
    if active is None:
        remedy = "a router applies the shipped one when it starts"
        return shipped, [*checks, Check("policy", "warn", "none was applied yet", remedy)]
    return active.policy, [*checks, Check("policy", "ok", f"revision {active.number} is active")]


async def _models(policy: Policy) -> list[Check]:
    """Each model that runs on a machine of ours, asked where it runs."""
    checks = []
    for node in policy.nodes:
        # Without keys: a provider that needs one is not asked, which would spend its quota; `_keys` looks at those.
        bench = Bench(policy, node, stand_in=False, allow_crash=False, environ={})
        try:
            served = await bench.serve()
        finally:
            await bench.aclose()
        for name, each in served.items():
            model = policy.models[name]
            what = f"{model.backend} on {node}"
            if policy.providers[model.provider].keys:
                continue
            if each.why_not is None:
                checks.append(Check(name, "ok", what))
            else:
                remedy = f"`ollama serve` there and `ollama pull {model.backend}`; without it use --stand-in"
                checks.append(Check(name, "warn", f"{what}: {each.why_not}", remedy))
    return checks


def _keys(policy: Policy) -> Iterator[Check]:
    """By name only; their values are nobody's business."""
    for name, provider in policy.providers.items():
        if not provider.keys:
            continue
        try:
            found = sources(provider.keys, os.environ)
        except KeyFileError as error:
            what, _, remedy = str(error).partition("; ")
            yield Check(f"{name} key", "fail", what, remedy)
            continue
        if found:
            said = ", ".join(
                f"{each.variable} is set" + (f" ({n} keys)" if (n := len(each.keys)) > 1 else "") for each in found
            )
            yield Check(f"{name} key", "ok", said)
        else:
            remedy = f"set {' or '.join(provider.keys)}, or one with {FILE} to name a file, where its node runs"
            yield Check(f"{name} key", "warn", "not set", remedy)


def _optional() -> Iterator[Check]:
    for name, use in (("node", "the JavaScript example"), ("docker", "docker compose up")):
        path = shutil.which(name)
        what = f"{_version(path, '--version')} at {path}" if path else f"not installed; needed only for {use}"
        yield Check(name, "ok", what)


def _version(path: str, option: str) -> str:
    try:
        ran = subprocess.run([path, option], capture_output=True, text=True, timeout=VERSION_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error})"
    return ran.stdout.strip().splitlines()[0] if ran.stdout.strip() else "no version"
