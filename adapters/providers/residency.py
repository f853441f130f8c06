"""What all residencies share: waiting with an end, the one token, and how their failures are told."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from router.errors import AttemptError
from router.ports import Call, Embedder, Progress, Provider
from schemas.failure import FailureKind
from schemas.request import Chat, ChatMessage

POLL_S: Final = 0.1
UNLOAD_MS: Final = 30_000
"""A GPU gives its memory back within 5 s, and a llama-server kills what has not ended by itself after 10 s."""

_ONE_TOKEN: Final = Chat(messages=(ChatMessage(role="user", content="1"),), max_tokens=1)
_ONE_TEXT: Final = Chat(messages=(), embed=("1",))


async def one_token(provider: Provider, name: str, within_ms: int, *, embeds: bool = False) -> None:
    """A real call, as every other: the same options, the same way. Raises AttemptError."""
    try:
        if embeds and isinstance(provider, Embedder):
            await provider.embed(Call(name, _ONE_TEXT, first_token_ms=within_ms, idle_ms=within_ms))
        else:
            await provider.chat(Call(name, _ONE_TOKEN, first_token_ms=within_ms, idle_ms=within_ms), Progress())
    except AttemptError as error:
        if error.failure.kind is not FailureKind.SILENCE:
            raise
        why = f"{name} generated nothing for {within_ms} ms: unload it, and restart its server if that does not help"
        raise AttemptError.of(FailureKind.SILENCE, why) from None


async def until(done: Callable[[], Awaitable[bool]], within_ms: int, late: str) -> None:
    """Ask until it is so. Raises AttemptError: SILENCE, saying `late`."""
    try:
        async with asyncio.timeout(within_ms / 1000):
            while True:
                if await done():
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AttemptError.of(FailureKind.SILENCE, late) from None


def unusable(message: str) -> AttemptError:
    return AttemptError.of(FailureKind.UNUSABLE, message)
