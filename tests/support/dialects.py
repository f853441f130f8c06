"""The vendors' dialects as a mock of all of them is reached, and a provider of each that is asked once."""

from collections.abc import Callable
from typing import Any, Final, cast

import pytest
from pydantic import SecretStr

from adapters.providers import DIALECTS, Backend, Setup, build
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.failure import Failure
from schemas.outcome import Answer
from schemas.policy import Dialect
from schemas.request import Chat

CANARY: Final = "sk-" + "canary-7f3a9b2c4d5e6f708192"
ASKED: Final = "서울 날씨와 지금 시각을 알려 주세요"
WHERE: Final = {
    "openai": ("/v1", "gpt-4o"),
    "anthropic": ("/v1", "claude-3-5-sonnet-20241022"),
    "gemini": ("/v1beta", "gemini-2.0-flash"),
    "cohere": ("", "command-r-plus"),
}
"""Of each dialect the path it starts at, and a model."""
THINKS: Final = {"openai": "gpt-5", "anthropic": "claude-sonnet-4-5", "gemini": "gemini-2.5-flash"}


def every(*names: str) -> Callable[[Any], Any]:
    """Run a test for each of these dialects (else for all), and say which of them nobody speaks yet."""
    return pytest.mark.parametrize(
        "dialect",
        [
            pytest.param(name, marks=pytest.mark.skipif(name not in DIALECTS, reason=f"no provider speaks {name} yet"))
            for name in names or WHERE
        ],
    )


def call(dialect: str, *, first_ms: int = 5000, idle_ms: int = 5000, backend: str | None = None, **chat: Any) -> Call:
    asked = Chat.model_validate({"messages": [{"role": "user", "content": ASKED}], **chat})
    return Call(backend or WHERE[dialect][1], asked, first_token_ms=first_ms, idle_ms=idle_ms)


async def ask(dialect: str, url: str, asked: Call | None = None, progress: Progress | None = None) -> Answer:
    path, model = WHERE[dialect]
    setup = Setup(url + path, {model: Backend()}, keys=(SecretStr(CANARY),), key_names=("CANARY_KEY",))
    provider = build(cast("Dialect", dialect), setup)
    try:
        return await provider.chat(asked or call(dialect), progress or Progress())
    finally:
        await provider.aclose()


async def fail(dialect: str, url: str, asked: Call | None = None) -> Failure:
    with pytest.raises(AttemptError) as caught:
        await ask(dialect, url, asked)
    return caught.value.failure
