"""Recomputes recorded decisions from what the streams hold, and says what differs."""

from dataclasses import dataclass, field

import typer
from rich.text import Text

from adapters.bus import JetStreamBus, open_bus
from ops.commands.history import Wanted, decisions
from ops.commands.screen import console, print_json
from ops.policy_file import PolicyError
from ops.policy_in_force import policy_store
from ops.policy_store import PolicyStore, RevisionNotFoundError
from router.core.admit import admit
from router.core.replay import Difference, differences, refused
from router.ports import Letter
from schemas.decision import Decided
from schemas.failure import ErrorType
from schemas.policy import Policy
from subjects import Event, Request, parse
from subjects.streams import EVENTS, REQUESTS


@dataclass(slots=True)
class Verified:
    """What a verification found."""

    recomputed: int = 0
    differing: list[tuple[Decided, tuple[Difference, ...]]] = field(default_factory=list)
    poison: int = 0
    """Refusals of poison, of which only the names can be compared."""
    skipped: list[tuple[Decided, str]] = field(default_factory=list)
    """What cannot be recomputed, and why."""

    def words(self) -> str:
        words = f"{self.recomputed} decisions recomputed, {len(self.differing)} differ"
        if self.poison:
            words += f"; of {self.poison} poison refusals the names were compared"
        return words + (f"; {len(self.skipped)} cannot be recomputed" if self.skipped else "")


async def run(url: str, wanted: Wanted, *, as_json: bool) -> None:
    """Verify and report; exit code 1 when anything differs."""
    async with open_bus(url, name="llmbus replay") as bus:
        found = await verify(bus, wanted)
    if as_json:
        print_json(_facts(found))
    else:
        show(found)
    if found.differing:
        raise typer.Exit(1)


def show(found: Verified) -> None:
    out = console()
    for decided, differs in found.differing:
        out.print(f"{decided.client}/{decided.rid} policy revision {decided.world.policy}", style="bold red")
        for difference in differs:
            out.print(f"  {difference.field}")
            out.print(Text.assemble(("    recorded    ", "dim"), str(difference.recorded)))
            out.print(Text.assemble(("    recomputed  ", "dim"), str(difference.recomputed)))
    for decided, why in found.skipped:
        out.print(f"{decided.client}/{decided.rid} {why}", style="yellow")
    out.print(found.words(), style="red" if found.differing else "yellow" if found.skipped else "green")


async def verify(bus: JetStreamBus, wanted: Wanted) -> Verified:
    found = Verified()
    policies = _Policies(await policy_store(bus))
    async for decided in decisions(bus, wanted):
        letter = await bus.get(REQUESTS, decided.request_seq)
        policy = await policies.get(decided.world.policy)
        subject = parse(letter.subject) if letter else None
        if letter is None or not isinstance(subject, Request):
            found.skipped.append((decided, "its request is kept no longer"))
        elif isinstance(policy, str):
            found.skipped.append((decided, policy))
        else:
            await _compare(bus, found, decided, subject, letter, policy)
    return found


async def _compare(
    bus: JetStreamBus, found: Verified, decided: Decided, subject: Request, letter: Letter, policy: Policy
) -> None:
    error = refused(decided)
    earlier = None
    if error is ErrorType.IDEMPOTENCY_CONFLICT:
        wanted = admit(subject, letter.data, letter.headers, letter.seq, policy.limits)
        before = await bus.last(EVENTS, str(Event(wanted.client, wanted.rid, "decided")))
        earlier = Decided.decode(before.data) if before else None
    if error is ErrorType.POISON:
        found.poison += 1
    else:
        found.recomputed += 1
    if differs := differences(decided, subject, letter.data, letter.headers, letter.seq, policy, earlier=earlier):
        found.differing.append((decided, differs))


class _Policies:
    """Each revision read once; the reason in place of one that cannot be used."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store
        self._known: dict[int, Policy | str] = {}

    async def get(self, number: int) -> Policy | str:
        if number not in self._known:
            try:
                self._known[number] = (await self._store.get(number)).policy
            except RevisionNotFoundError as error:
                self._known[number] = str(error)
            except PolicyError:
                self._known[number] = f"today's rules refuse policy revision {number}"
        return self._known[number]


def _facts(found: Verified) -> dict[str, object]:
    return {
        "recomputed": found.recomputed,
        "differ": len(found.differing),
        "poison_names_compared": found.poison,
        "skipped": [{"request": f"{decided.client}/{decided.rid}", "why": why} for decided, why in found.skipped],
        "differences": [
            {
                "request": f"{decided.client}/{decided.rid}",
                "field": each.field,
                "recorded": each.recorded,
                "recomputed": each.recomputed,
            }
            for decided, differs in found.differing
            for each in differs
        ],
    }
