"""A bus whose models stand behind scripted upstreams: `primary`, and behind it `second` and `third`."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.inside import Inside, inside
from tests.support.openai_speech import DONE, FINISH, USAGE, event
from tests.support.scripted_upstream import Script, ScriptedUpstream

NAMES = ("primary", "second", "third")
MODELS = b'{"data": [{"id": "gpt-x"}]}'
FIRST_TOKEN_MS = 600
NO_KEYS: Mapping[str, str] = {}


def answering(text: str) -> Script:
    """A whole, well-formed streamed answer that says `text`."""
    body = event({"content": text}) + FINISH + event(usage=USAGE) + DONE
    return lambda exchange: exchange.stream(body)


@dataclass(slots=True)
class Upstreams:
    """The bus, and each upstream by its name; each answers with its own name until its script is changed."""

    bus: Inside
    primary: ScriptedUpstream
    second: ScriptedUpstream
    third: ScriptedUpstream

    @property
    def calls(self) -> tuple[int, int, int]:
        """How many chats each has been asked for."""
        return len(self.primary.exchanges), len(self.second.exchanges), len(self.third.exchanges)


Policy = dict[str, Any]


def patient(policy: Policy) -> None:
    """A change for `upstreams`: models may take their time."""
    for model in policy["models"].values():
        model |= {"first_token_ms": 60_000, "idle_ms": 60_000}


def one_slot(policy: Policy) -> None:
    """A change for `upstreams`: the primary runs one request at a time, and may take its time."""
    patient(policy)
    policy["models"]["primary"]["slots"] = 1


def alone(policy: Policy) -> None:
    """A change for `upstreams`: nobody stands behind the primary."""
    policy["fallbacks"]["default"] = []


def policy(urls: dict[str, str], change: Callable[[Policy], None], limits: Policy) -> str:
    """Three models of three providers, tried in order, with time limits that a test can wait for."""
    models = {
        name: {
            "nodes": ["bench"],
            "provider": name,
            "backend": "gpt-x",
            "context_tokens": 100_000 * at,
            "quality": 0.5,
            "tokens_per_s": 100,
            "slots": 128,
            "price": {"input_usd_per_mtok": at, "output_usd_per_mtok": 2 * at},
            "first_token_ms": FIRST_TOKEN_MS,
            "idle_ms": 400,
        }
        for at, name in enumerate(NAMES, start=1)
    }
    made: Policy = {
        "version": 1,
        "nodes": {"bench": {}},
        "providers": {name: {"dialect": "openai", "url": url} for name, url in urls.items()},
        "models": models,
        "capabilities": {"chat": {"models": ["primary"]}},
        "default": {"models": ["primary"]},
        "fallbacks": {"default": ["second", "third"], "none": []},
        "guardrails": {},
        "limits": limits,
    }
    change(made)
    return yaml.safe_dump(made, sort_keys=False)


@asynccontextmanager
async def upstreams(
    change: Callable[[Policy], None] = lambda _policy: None, *, nodes: bool = True,
    environ: Mapping[str, str] = NO_KEYS, **limits: Any,
) -> AsyncIterator[Upstreams]:  # fmt: skip
    """`change` has its hand on the policy before it is applied; `limits` are the policy's."""
    async with AsyncExitStack() as stack:
        made = [await stack.enter_async_context(ScriptedUpstream(answering(name), listed=MODELS)) for name in NAMES]
        text = policy({name: upstream.url for name, upstream in zip(NAMES, made, strict=True)}, change, limits)
        bus = await stack.enter_async_context(inside(policy=text, nodes=nodes, environ=environ))
        yield Upstreams(bus, *made)
