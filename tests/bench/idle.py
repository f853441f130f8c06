"""What a node costs that has nothing to do: heartbeats, looks at its backend's memory, an empty queue.

    python -m tests.bench.idle [--json] [--seconds 30]

A real `llmbus node` process that manages three models of an Ollama (its stand-in, in this process), a router and a
nats-server that syncs every message. The figure is percent of one core, of each process.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

import psutil
import yaml

from adapters.client import Client
from schemas import LlmRequest
from tests.support.bus import Role, live_bus
from tests.support.fake_ollama import FakeModel, FakeOllama

NODE = "mini"
SIZES_GB = {"architect": 5.0, "coder": 4.0, "reviewer": 1.5}
MARK_PERCENT = 1.0


def policy(url: str) -> str:
    models = {
        name: {
            "nodes": [NODE], "provider": "ollama", "backend": f"{name}:x", "memory_gb": gb, "context_tokens": 8_000,
            "quality": 0.5, "tokens_per_s": 100, "price": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0},
        }
        for name, gb in SIZES_GB.items()
    }  # fmt: skip
    return yaml.safe_dump(
        {
            "version": 1,
            "nodes": {NODE: {"memory_gb": 12.0, "urls": {"ollama": url}}},
            "providers": {"ollama": {"dialect": "ollama"}},
            "models": models,
            "capabilities": {"chat": {"models": ["coder"]}},
            "default": {"models": ["coder"]},
        }
    )


def cpu_s(role: Role) -> float:
    assert role.process is not None
    times = psutil.Process(role.process.pid).cpu_times()
    return float(times.user + times.system)


async def measure(seconds: float) -> dict[str, float]:
    """Percent of one core, by process, once every model was asked."""
    with tempfile.TemporaryDirectory(prefix="llmbus-idle-") as directory:
        path = Path(directory) / "policy.yaml"
        async with FakeOllama({f"{name}:x": FakeModel(gb=gb) for name, gb in SIZES_GB.items()}) as ollama:
            path.write_text(policy(ollama.url))
            async with live_bus(policy=path, nodes=(NODE,)) as bus, Client.connect(bus.url, "idle") as client:
                for model in SIZES_GB:
                    await client.ask(LlmRequest(prompt="안녕하세요", model=model))
                before = {name: cpu_s(role) for name, role in bus.roles.items()}
                await asyncio.sleep(seconds)
                return {name: (cpu_s(role) - before[name]) / seconds * 100 for name, role in bus.roles.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to watch; 30 unless told")
    asked = parser.parse_args()
    found = asyncio.run(measure(asked.seconds))
    for name, percent in found.items():
        print(f"{name}: {percent:.2f} % of a core, idle for {asked.seconds:g} s")
    print(f"mark for the node: below {MARK_PERCENT:g} %: {'met' if found[NODE] < MARK_PERCENT else 'MISSED'}")
    if asked.json:
        print(json.dumps({"idle_cpu_percent": round(found[NODE], 2)}))


if __name__ == "__main__":
    main()
