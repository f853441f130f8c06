"""The keys of one account: used in turn, a refused one set aside, none of them ever in anything that is printed."""

import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import httpx
import structlog
from pydantic import SecretStr

from router.errors import AttemptError
from schemas.failure import Failure, FailureKind

log = structlog.get_logger(__name__)

REFUSED_REST_S: Final = 600.0
"""A key that was refused is not tried for so long, unless there is no other."""
LIMITED_REST_S: Final = 1.0
"""A key over its rate rests for what the upstream says, else for so long."""

T = TypeVar("T")


class HeaderKey(httpx.Auth):
    """Puts a key into a request at the last moment, so that it stands in nothing that is ever printed."""

    def __init__(self, header: str, prefix: str, key: SecretStr) -> None:
        self._header = header
        self._prefix = prefix
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers[self._header] = self._prefix + self._key.get_secret_value()
        yield request


@dataclass(slots=True)
class _Key:
    number: int
    auth: HeaderKey
    rests_until_s: float = 0.0


class Keys:
    """`names` are the environment variables they may come from: empty when the server needs no key."""

    def __init__(
        self, secrets: Sequence[SecretStr], names: Sequence[str], *, header: str = "Authorization",
        prefix: str = "Bearer ",
    ) -> None:  # fmt: skip
        self.names = " or ".join(names)
        self._keys = [_Key(n, HeaderKey(header, prefix, secret)) for n, secret in enumerate(secrets, start=1)]
        self._turn = 0

    @property
    def missing(self) -> bool:
        return bool(self.names) and not self._keys

    async def using(self, call: Callable[[httpx.Auth | None], Awaitable[T]]) -> T:
        """`call` with the key whose turn it is; when that is refused or over its rate, with the next usable one.

        Nothing is spent on a key that is refused, so this is still one attempt. Raises AttemptError.
        """
        if not self._keys:
            return await call(None)
        tried: set[int] = set()
        while True:
            key = self._next(tried)
            try:
                return await call(key.auth)
            except AttemptError as error:
                self._note(key, error.failure)
                tried.add(key.number)
                if key.rests_until_s <= time.monotonic() or not self._usable(tried):
                    raise

    def _next(self, tried: set[int]) -> _Key:
        """The next in turn that is not resting; when all are, the one that has rested longest."""
        usable = self._usable(tried) or [min(self._keys, key=lambda key: key.rests_until_s)]
        self._turn += 1
        return usable[(self._turn - 1) % len(usable)]

    def _usable(self, tried: set[int]) -> list[_Key]:
        now_s = time.monotonic()
        return [key for key in self._keys if key.number not in tried and key.rests_until_s <= now_s]

    def _note(self, key: _Key, failure: Failure) -> None:
        if failure.kind is FailureKind.AUTH:
            rest_s = REFUSED_REST_S
        elif failure.kind is FailureKind.RATE_LIMITED:
            rest_s = LIMITED_REST_S if failure.retry_after_ms is None else failure.retry_after_ms / 1000
        else:
            return
        key.rests_until_s = max(key.rests_until_s, time.monotonic() + rest_s)
        log.warning("key.set_aside", names=self.names, key=key.number, of=len(self._keys), why=failure.kind.value)
