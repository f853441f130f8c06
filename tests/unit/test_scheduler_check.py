"""A model that was silent is asked for one token, and only while it does nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from adapters.providers.loopback import Loopback
from router.attempt import Served
from router.breaker import Breaker
from router.core.residency import GB, ModelSpec, NodeState
from router.core.waiting import Job
from router.errors import AttemptError
from router.lane import Lane
from router.ports import Held
from router.scheduler import Home, Scheduler
from router.seat import Seat
from schemas.failure import Failure, FailureKind

SILENCE = Failure(kind=FailureKind.SILENCE, message="no first byte in time")
CODER = ModelSpec("coder", 4 * GB, 30, slots=2)
OTHER = ModelSpec("reviewer", 7 * GB, 30)


class Backend:
    """A Residency that writes down what it was told; `hangs` until it is unloaded."""

    fixed = False

    def __init__(self) -> None:
        self.told: list[str] = []
        self.held: set[str] = set()
        self.hangs = False
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    async def models(self) -> dict[str, Held]:
        return {name: Held() for name in self.held}

    async def load(self, name: str) -> None:
        self.told.append(f"load {name}")
        self.held.add(name)

    async def unload(self, name: str) -> None:
        self.told.append(f"unload {name}")
        self.held.discard(name)
        self.hangs = False

    async def generates(self, name: str, within_ms: int) -> None:
        self.told.append(f"check {name}")
        self.asked.set()
        await self.answers.wait()
        if self.hangs:
            raise AttemptError.of(FailureKind.SILENCE, f"nothing for {within_ms} ms")

    async def aclose(self) -> None:
        pass


@asynccontextmanager
async def scheduling(backend: Backend) -> AsyncIterator[Scheduler]:
    specs = (CODER, OTHER)
    homes = {spec.name: Home(backend, spec.name) for spec in specs}
    scheduler = Scheduler(NodeState(specs, 10 * GB), homes, lambda: 1_000, None)
    async with scheduler.running():
        yield scheduler


def job(ticket: int, model: str = "coder") -> Job:
    return Job(ticket, model, "normal", 0, 10**9, 100)


async def served(scheduler: Scheduler, ticket: int, model: str = "coder") -> None:
    async with asyncio.timeout(5), scheduler.place(job(ticket, model)):
        scheduler.heard(model, None)


async def test_while_another_runs_on_it_it_is_not_checked_and_a_success_clears_it() -> None:
    backend = Backend()
    async with scheduling(backend) as scheduler:
        async with scheduler.place(job(1)):
            async with scheduler.place(job(2)):
                scheduler.heard("coder", SILENCE)
            assert scheduler.state.models["coder"].phase == "resident"
            scheduler.heard("coder", None)  # the other one answered: it works
        await served(scheduler, 3)
        assert backend.told == ["load coder"]


@pytest.mark.parametrize("hangs", [True, False])
async def test_once_nothing_runs_it_is_checked_before_anything_starts_or_goes(hangs: bool) -> None:
    backend = Backend()
    backend.hangs = hangs
    async with scheduling(backend) as scheduler, AsyncExitStack() as other:
        async with scheduler.place(job(1)):
            await other.enter_async_context(scheduler.place(job(2)))
            scheduler.heard("coder", SILENCE)
        assert "check coder" not in backend.told
        backend.answers.clear()
        scheduler.heard("coder", SILENCE)
        await other.aclose()
        await backend.asked.wait()
        waiting = [asyncio.create_task(served(scheduler, 3)), asyncio.create_task(served(scheduler, 4, "reviewer"))]
        while len(scheduler.state.queue) < 2:
            await asyncio.sleep(0)
        assert backend.told == ["load coder", "check coder"]
        backend.answers.set()
        await asyncio.gather(*waiting)
    anew = ["unload coder", "load coder"] if hangs else []
    assert [told for told in backend.told if "coder" in told][: 2 + len(anew)] == ["load coder", "check coder", *anew]
    assert backend.told.count("check coder") == 1
    assert backend.told.count("load coder") == 1 + hangs


async def test_what_went_meanwhile_is_not_checked_which_would_load_it() -> None:
    backend = Backend()
    async with scheduling(backend) as scheduler:
        async with scheduler.place(job(1)):
            scheduler.heard("coder", SILENCE)
            backend.held.clear()
            scheduler.state.unloaded("coder")  # as a look has found
        assert backend.told == ["load coder"]
        await served(scheduler, 2)
        assert backend.told == ["load coder", "load coder"]


async def test_what_a_wanted_model_waits_for_is_told_until_it_is_loaded() -> None:
    async with scheduling(Backend()) as scheduler:
        seat = Seat(Served(Loopback(), "loopback"), Lane(1), Breaker(5, 5_000), "reviewer", scheduler)
        async with scheduler.place(job(1)):
            assert seat.state().waits_for is None
            wanting = asyncio.create_task(served(scheduler, 2, "reviewer"))
            while scheduler.state.queue.waiting("reviewer") == 0:
                await asyncio.sleep(0)
            assert seat.state().waits_for == "making_room"
        await wanting
        assert seat.state().waits_for is None
