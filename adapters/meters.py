"""What limited clients use, counted on the bus, so that any number of edges agree."""

from collections.abc import Container
from typing import Final, NamedTuple

import nats.errors
from nats.aio.msg import Msg
from pydantic_core import from_json, to_json

from adapters.bus import JetStreamBus
from router.errors import ConflictError, UnavailableError
from schemas import headers as h
from subjects import Meter, Open, token
from subjects.grammar import MeterKind
from subjects.streams import OPEN

ASK_S: Final = 2.0


class Place(NamedTuple):
    """What a request takes while it has no reply."""

    seq: int
    """Its turn."""
    new: bool = True


class Meters:
    """Counters by the minute, and a place for each request that has no reply yet."""

    def __init__(self, bus: JetStreamBus) -> None:
        self._bus = bus

    async def count(self, client: str, kind: MeterKind, minute: int, amount: int) -> int:
        """Add to a counter; the sum with it. Raises UnavailableError."""
        subject = str(Meter(client, kind, minute))
        answer = await self._ask(subject, b"", {h.INCREMENT: f"{amount:+d}"})
        if "val" not in answer:
            raise UnavailableError(subject, str(answer.get("error")))
        return int(answer["val"])

    async def take(self, client: str, rid: str, micro_usd: int, ttl_s: int) -> Place:
        """A place, or the one that the request has already. Should nobody give it back, it ends after `ttl_s`.

        Raises BusError.
        """
        subject = str(Open(client, rid))
        while True:
            try:
                taken = await self._bus.publish(
                    subject, str(micro_usd).encode(), headers={h.TTL: f"{ttl_s}s"}, first=True
                )
            except ConflictError:
                if (letter := await self._bus.last(OPEN, subject)) is not None:
                    return Place(letter.seq, new=False)
            else:
                return Place(taken.seq)

    async def taken(self, client: str) -> int:
        """How many places a client has, of whichever requests. Raises UnavailableError."""
        subject = f"$JS.API.DIRECT.GET.{OPEN}"
        first = to_json({"seq": 1, "next_by_subj": f"llm.open.{token('client', client)}.*", "batch": 1})
        answer = await self._request(subject, first, {})
        pending = (answer.headers or {}).get("Nats-Num-Pending")
        return 0 if pending is None else int(pending) + 1

    async def before(self, client: str, seq: int, *, at_most: int, without: Container[str] = ()) -> list[int]:
        """What the places before this one hold, in millionths of a dollar; no more of them than asked for.

        `without` those of certain requests.
        """
        held: list[int] = []
        async for letter in self._bus.read(OPEN, f"llm.open.{token('client', client)}.*"):
            if letter.seq >= seq or len(held) == at_most:
                break
            if letter.subject.rpartition(".")[2] not in without:
                held.append(int(letter.data))
        return held

    async def give_back(self, client: str, rid: str) -> None:
        """Nothing happens when it is gone. Raises UnavailableError."""
        await self._ask(f"$JS.API.STREAM.PURGE.{OPEN}", to_json({"filter": str(Open(client, rid))}), {})

    async def _ask(self, subject: str, data: bytes, headers: dict[str, str]) -> dict[str, str]:
        whole: dict[str, str] = from_json((await self._request(subject, data, headers)).data)
        return whole

    async def _request(self, subject: str, data: bytes, headers: dict[str, str]) -> Msg:
        try:
            return await self._bus.client.request(subject, data, timeout=ASK_S, headers=headers or None)
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(subject, f"no answer: {str(error) or type(error).__name__}") from error
