"""Who has called what off: heard as it is said, and read from the stream at the start."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from router.ports import Bus, Headers
from subjects import Cancel, parse
from subjects.streams import CANCELS

KEPT: Final = 50_000
"""The newest ones that are remembered; the stream keeps them for half an hour."""

Key = tuple[str, str]
"""(client, request id)"""


class Cancels:
    """One per process. `on_cancel` is called once for each request that is called off, as soon as it is heard."""

    def __init__(self, bus: Bus, on_cancel: Callable[[Key], None] = lambda _key: None) -> None:
        self._bus = bus
        self.on_cancel = on_cancel
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def __contains__(self, key: Key | None) -> bool:
        return key in self._keys

    async def look(self, key: Key) -> bool:
        """Whether it is called off, by the stream: what was said while the connection was away counts too."""
        if key not in self._keys and await self._bus.last(CANCELS, str(Cancel(*key))) is not None:
            self._note(key)
        return key in self._keys

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with self._bus.listen("llm.cancel.*.*", self._heard):
            async for letter in self._bus.read(CANCELS):
                self._heard(letter.subject, letter.data, letter.headers)
            yield

    def _heard(self, subject: str, _data: bytes, _headers: Headers) -> None:
        address = parse(subject)
        if isinstance(address, Cancel):
            self._note((address.client, address.rid))

    def _note(self, key: Key) -> None:
        if key in self._keys:
            return
        self._keys[key] = None
        if len(self._keys) > KEPT:
            self._keys.popitem(last=False)
        self.on_cancel(key)
