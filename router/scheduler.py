"""Which of a machine's models are in its memory, and whose turn it is: the orders of `router.core.schedule`, followed.

Every event is told to the state, and the state asked for orders; changes of memory run on their own and come back as
events. What others do in the backend is seen by looking at it now and then.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog

from router.core.orders import Orders, Refusal
from router.core.residency import GB, NodeState
from router.core.schedule import schedule
from router.core.waiting import Job
from router.errors import AttemptError, one_error
from router.ports import Held, Residency
from schemas.failure import Failure, FailureKind
from schemas.heartbeat import WaitReason
from subjects.grammar import Urgency

log = structlog.get_logger(__name__)

LOOK_S: Final = 5.0
RETRY_MS: Final = 30_000
"""What a model whose load failed is left alone for."""
ONE_TOKEN_MS: Final = 10_000
"""What a model that was silent has for one token, alone and in memory; then it hangs."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a model's memory is managed, and under which name."""

    residency: Residency
    backend: str


class Scheduler:
    """One machine. `free_bytes` measures what its memory has left; None: the models are on another machine."""

    def __init__(
        self, state: NodeState, homes: Mapping[str, Home], now_ms: Callable[[], int],
        free_bytes: Callable[[], int] | None,
    ) -> None:  # fmt: skip
        self.state = state
        self.waits: dict[str, WaitReason] = {}
        """By model that is wanted and not loaded."""
        self._homes = homes
        self._now_ms = now_ms
        self._free_bytes = free_bytes
        self._turns: dict[int, asyncio.Future[None]] = {}
        """By ticket, of those that wait."""
        self._silent: set[str] = set()
        """Models whose latest attempt brought nothing: a backend calls one loaded though what runs it hangs."""
        self._broken: dict[str, Failure] = {}
        """Why a model could not be loaded lately."""
        self._tasks: asyncio.TaskGroup | None = None
        self._changes: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Changes of memory that are under way at the end are given up."""
        with one_error():
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._look()
                looking = tasks.create_task(self._look_for_ever())
                try:
                    yield
                finally:
                    self._tasks = None
                    if self._timer is not None:
                        self._timer.cancel()
                    looking.cancel()
                    for task in self._changes:
                        task.cancel()

    @asynccontextmanager
    async def place(self, job: Job, *, patient: bool = True) -> AsyncIterator[None]:
        """Wait for a slot of the job's model, in memory by then, and hold it. Raises AttemptError: it is refused.

        Who is not patient does not wait for a model that lately could not be loaded.
        """
        broken = self._broken.get(job.model)
        if broken is not None and not patient and self.state.models[job.model].retry_ms > self._now_ms():
            raise AttemptError(broken)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns[job.ticket] = turn
        try:
            self.state.arrived(job, self._now_ms())
            self.settle()
            await turn
            yield
        finally:
            self._turns.pop(job.ticket, None)
            if self.state.finished(job.ticket, self._now_ms()) is None:
                self.state.withdrawn(job.ticket)
            self.settle()

    def behind(self, model: str, urgency: Urgency, count: int) -> None:
        """So many more wait on the bus."""
        self.state.behind(model, urgency, count)
        self.settle()

    def heard(self, model: str, failure: Failure | None) -> None:
        """How an attempt ended. One that was silent is checked as soon as nothing runs on it."""
        if failure is None:
            self._silent.discard(model)
        elif failure.kind is FailureKind.SILENCE:
            self._silent.add(model)

    def settle(self) -> None:
        """Do what the state asks for until it asks for nothing more."""
        if self._tasks is None:
            return
        for name in tuple(self._silent):
            if not self.state.models[name].running:
                self._silent.discard(name)
                if self.state.models[name].phase == "resident":
                    self.state.check_began(name)
                    self._change(self._tasks, self._check(name))
        while (orders := schedule(self.state, self._now_ms())).acts:
            self._follow(orders, self._tasks)
        self.waits = {wait.model: wait.reason for wait in orders.waits}
        self._ask_again(orders.ask_at_ms)

    def _follow(self, orders: Orders, tasks: asyncio.TaskGroup) -> None:
        for refusal in orders.refusals:
            self.state.withdrawn(refusal.ticket)
            self._refuse(refusal.ticket, _why_refused(refusal))
        for unload in orders.unloads:
            log.info("model.unload", model=unload.model, why=unload.reason, made_room_for=unload.made_room_for)
            self.state.unload_began(unload.model, unload.made_room_for)
            self._change(tasks, self._unload(unload.model))
        if orders.load is not None:
            log.info("model.load", model=orders.load.model, why=orders.load.reason)
            self.state.load_began(orders.load.model, self._now_ms())
            self._change(tasks, self._load(orders.load.model))
        for start in orders.starts:
            self.state.started(start.ticket, self._now_ms())
            turn = self._turns[start.ticket]
            if not turn.done():
                turn.set_result(None)

    def _change(self, tasks: asyncio.TaskGroup, change: Coroutine[Any, Any, None]) -> None:
        task = tasks.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def _load(self, name: str) -> None:
        home, failure = self._homes[name], None
        try:
            await home.residency.load(home.backend)
            held = (await home.residency.models()).get(home.backend)
        except AttemptError as error:
            failure = error.failure
        now_ms = self._now_ms()
        if failure is None:
            self._broken.pop(name, None)
            self.state.loaded(name, now_ms, held.memory_bytes if held else None)
            log.info("model.loaded", model=name, load_ms=self.state.models[name].measured_load_ms)
        else:
            log.warning("model.load_failed", model=name, why=str(failure.message))
            self.state.load_failed(name, now_ms + RETRY_MS)
            self._broken[name] = failure
            # Others may have it in memory, or be able to: nobody waits here for a load that may fail again.
            for job in tuple(self.state.queue.jobs(name)):
                self._refuse(job.ticket, failure)
        self.settle()

    async def _check(self, name: str) -> None:
        home = self._homes[name]
        try:
            await home.residency.generates(home.backend, ONE_TOKEN_MS)
        except AttemptError as error:
            log.warning("model.wedged", model=name, why=error.failure.message)
            self.state.unload_began(name, self.state.coming)
            await self._unload(name)
            return
        self.state.checked(name)
        self.settle()

    async def _unload(self, name: str) -> None:
        home = self._homes[name]
        try:
            await home.residency.unload(home.backend)
        except AttemptError as error:
            log.warning("model.unload_failed", model=name, why=error.failure.message)
        # If it is there all the same, the next look finds it.
        self.state.unloaded(name)
        self._measure()
        self.settle()

    def _refuse(self, ticket: int, failure: Failure) -> None:
        turn = self._turns.get(ticket)
        if turn is not None and not turn.done():
            turn.set_exception(AttemptError(failure))

    def _ask_again(self, at_ms: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at_ms is not None:
            delay_s = max(0, at_ms - self._now_ms()) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.settle)

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look()

    async def _look(self) -> None:
        """Take over what is in memory really: loaded or thrown out by others, or by the backend itself."""
        for residency in {id(home.residency): home.residency for home in self._homes.values()}.values():
            before = {name: model.phase for name, model in self.state.models.items()}
            try:
                found = await residency.models()
            except AttemptError as error:
                self._away(residency, error.failure)
                continue
            for name, home in self._homes.items():
                if home.residency is not residency:
                    continue
                if name in self._broken and self._broken[name].kind is FailureKind.CONNECTION:
                    del self._broken[name]  # its backend was away, and is back
                    self.state.models[name].retry_ms = 0
                if before[name] == self.state.models[name].phase:
                    self._found(name, found.get(home.backend))
        self._measure()
        self.settle()

    def _away(self, residency: Residency, failure: Failure) -> None:
        """Its backend cannot be reached: nothing is loaded there, and nobody waits for it."""
        for name, home in self._homes.items():
            if home.residency is residency:
                self.state.models[name].retry_ms = self._now_ms() + RETRY_MS
                self._broken[name] = failure
                for job in tuple(self.state.queue.jobs(name)):
                    self._refuse(job.ticket, failure)

    def _found(self, name: str, held: Held | None) -> None:
        phase = self.state.models[name].phase
        if held is not None and not held.loading and phase == "absent":
            self.state.models[name].retry_ms = 0
            self.state.loaded(name, self._now_ms(), held.memory_bytes)
        elif held is None and phase == "resident":
            log.info("model.gone", model=name)
            self.state.unloaded(name)

    def _measure(self) -> None:
        if self._free_bytes is not None:
            held = sum(m.memory_bytes for m in self.state.models.values() if m.phase == "resident")
            self.state.measured(min(self._free_bytes(), self.state.total_bytes - held))


def _why_refused(refusal: Refusal) -> Failure:
    if refusal.reason == "deadline":
        return Failure(kind=FailureKind.DEADLINE, message="its time ran out in the queue")
    needed, had = refusal.needed_bytes / GB, refusal.had_bytes / GB
    message = f"it needs {needed:.1f} GB with what must stay free beside it, and this machine has {had:.1f} GB"
    return Failure(kind=FailureKind.INSUFFICIENT_MEMORY, message=message)
