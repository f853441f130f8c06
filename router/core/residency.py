"""What a node holds in memory and what waits for it, kept up to date by events. Pure: time comes in as ms.

    arrived / withdrawn        a request stands in the queue, or no longer does
    started / finished         a request generates, or no longer does
    load_began / loaded / load_failed / unload_began / unloaded
    check_began / checked      it may hang, and is as good as loading until it was found well
    measured                   how much memory the machine has left

`schedule` reads this and changes nothing; whoever follows its orders reports here what was done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from router.core.waiting import Job, Queue
from schemas.policy import Model
from subjects.grammar import URGENCIES, Urgency

GB: Final = 1_000_000_000
LOAD_BYTES_PER_S: Final = 2 * GB
"""5 s for every 10 GB, until a load was measured."""
BOUNDS_MS: Final[Mapping[Urgency, int]] = MappingProxyType(
    {"critical": 5_000, "high": 30_000, "normal": 90_000, "batch": 4 * 3_600_000}
)

Phase = Literal["absent", "loading", "resident", "unloading"]


@dataclass(frozen=True, slots=True)
class Rules:
    bounds_ms: Mapping[Urgency, int] = field(default_factory=lambda: BOUNDS_MS)
    """How long a request may wait until its model must be loaded, whatever else there is to do."""
    headroom_bytes: int = 2 * GB
    """Left free beside the models."""
    giant_headroom_bytes: int = 5 * GB
    """Left free beside a giant."""
    giant_share: float = 0.75
    """A model that takes more of the machine's memory than this is a giant."""
    overdue_share: int = 4
    """One start in so many of a model goes to an overdue request though more urgent ones wait."""
    keep_ms: int = 2 * 3_600_000
    """A model that nobody used for so long is unloaded."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is known of a model before it ran; `pinned`: kept in memory always."""

    name: str
    weights_bytes: int
    tokens_per_s: float
    slots: int = 1
    context_tokens: int = 0
    kv_bytes_per_token: int = 0
    pinned: bool = False


def spec_of(name: str, model: Model) -> ModelSpec:
    """As the policy has it; its `memory_gb` holds weights and context."""
    return ModelSpec(
        name=name,
        weights_bytes=round(model.memory_gb * GB),
        tokens_per_s=model.tokens_per_s,
        slots=model.slots,
        context_tokens=model.context_tokens,
        pinned=model.resident,
    )


@dataclass(slots=True)
class Residency:
    """A model on this node: where it is, what it generates, and what was measured of it."""

    spec: ModelSpec
    phase: Phase = "absent"
    running: dict[int, Job] = field(default_factory=dict)
    """By ticket."""
    correction_bytes: int = 0
    """Measured less estimated."""
    measured_load_ms: int | None = None
    tokens_per_s: float = 0
    began_ms: int = 0
    """When its load began."""
    loaded_ms: int = 0
    """When its turn began."""
    used_ms: int = 0
    interactive_ms: int | None = None
    """When it last started or ended a request that was not batch."""
    fresh: bool = False
    """Nothing was started since it was loaded."""
    passed: int = 0
    """Starts in a row that went past an overdue request."""
    retry_ms: int = 0
    """No load is tried before."""

    def __post_init__(self) -> None:
        self.tokens_per_s = self.tokens_per_s or self.spec.tokens_per_s

    @property
    def memory_bytes(self) -> int:
        spec = self.spec
        return spec.weights_bytes + spec.slots * spec.context_tokens * spec.kv_bytes_per_token + self.correction_bytes

    @property
    def load_ms(self) -> int:
        if self.measured_load_ms is not None:
            return self.measured_load_ms
        return self.spec.weights_bytes * 1000 // LOAD_BYTES_PER_S

    @property
    def free_slots(self) -> int:
        return self.spec.slots - len(self.running) if self.phase == "resident" else 0

    def generation_ms(self, tokens: int) -> int:
        return round(tokens * 1000 / self.tokens_per_s)


class NodeState:
    """One machine: its memory, its models in the order of the policy, its queue."""

    def __init__(
        self, specs: Sequence[ModelSpec], total_bytes: int, free_bytes: int | None = None, rules: Rules | None = None
    ) -> None:
        self.rules = rules or Rules()
        self.total_bytes = total_bytes
        self.free_bytes = total_bytes if free_bytes is None else free_bytes
        """As last measured; loads and unloads since then are counted in."""
        self.models = {spec.name: Residency(spec) for spec in specs}
        self.queue = Queue(tuple(self.models))
        self.coming: str | None = None
        """For whom others were unloaded: it is loaded next, or they would have gone for nothing."""
        self._running: dict[int, str] = {}

    def arrived(self, job: Job, now_ms: int) -> bool:
        """False if it is here already: a message may be delivered again while it waits or runs."""
        if job.ticket in self.queue or job.ticket in self._running:
            return False
        model = self.models[job.model]
        generation_ms = model.generation_ms(job.tokens)
        due_ms = job.arrived_ms + self.rules.bounds_ms[job.urgency]
        in_time_ms = job.deadline_ms - generation_ms - model.load_ms
        if in_time_ms >= now_ms:  # a deadline that no load could meet is no reason to hurry
            due_ms = min(due_ms, in_time_ms)
        self.queue.add(job, due_ms, generation_ms)
        return True

    def withdrawn(self, ticket: int) -> Job | None:
        """Called off, refused or handed back; None if it does not wait here."""
        return self.queue.remove(ticket)

    def behind(self, model: str, urgency: Urgency, count: int) -> None:
        """So many more wait on the bus."""
        self.queue.lines[model][urgency].behind = count

    def started(self, ticket: int, now_ms: int) -> None:
        job = self.queue.remove(ticket)
        if job is None:
            raise ValueError(f"request {ticket} does not wait on this node")
        model = self.models[job.model]
        if not model.free_slots:
            raise ValueError(f"{job.model} has no free slot for request {ticket}")
        model.running[ticket] = job
        model.fresh = False
        model.passed = model.passed + 1 if self.passes_overdue(job, now_ms) else 0
        self._running[ticket] = job.model
        self._used(model, job, now_ms)

    def passes_overdue(self, job: Job, now_ms: int) -> bool:
        """Whether a less urgent request for the same model is past its time and waits on."""
        later = URGENCIES[URGENCIES.index(job.urgency) + 1 :]
        lines = (self.queue.lines[job.model][urgency] for urgency in later)
        return any(line and line[0].due_ms <= now_ms for line in lines)

    def finished(self, ticket: int, now_ms: int) -> Job | None:
        """None if it was not running: the end of a request is told once."""
        name = self._running.pop(ticket, None)
        if name is None:
            return None
        model = self.models[name]
        job = model.running.pop(ticket)
        self._used(model, job, now_ms)
        return job

    def _used(self, model: Residency, job: Job, now_ms: int) -> None:
        model.used_ms = now_ms
        if job.urgency != "batch":
            model.interactive_ms = now_ms

    def load_began(self, name: str, now_ms: int) -> None:
        model = self.models[name]
        model.phase, model.began_ms = "loading", now_ms
        self.coming = None
        self.free_bytes -= model.memory_bytes

    def loaded(self, name: str, now_ms: int, memory_bytes: int | None = None) -> None:
        """It can be called; `memory_bytes` is what it was measured to take."""
        model = self.models[name]
        if model.phase == "loading":
            model.measured_load_ms = now_ms - model.began_ms
        else:  # found in memory: loaded by somebody else, or before we started
            self.free_bytes -= model.memory_bytes
        model.phase, model.loaded_ms, model.fresh = "resident", now_ms, True
        if memory_bytes is not None:
            more = memory_bytes - model.memory_bytes
            model.correction_bytes += more
            self.free_bytes -= more

    def load_failed(self, name: str, retry_ms: int) -> None:
        """It is not in memory; no load is tried before `retry_ms`."""
        self.unloaded(name)
        self.models[name].retry_ms = retry_ms

    def check_began(self, name: str) -> None:
        """Nothing starts on it, and it does not go for others: it may hang, though the backend calls it loaded."""
        if self.models[name].running:
            raise ValueError(f"{name} is generating and would let the check wait")
        self.models[name].phase = "loading"

    def checked(self, name: str) -> None:
        """It was found well."""
        self.models[name].phase = "resident"

    def unload_began(self, name: str, made_room_for: str | None = None) -> None:
        if self.models[name].running:
            raise ValueError(f"{name} is generating and is not unloaded")
        self.models[name].phase = "unloading"
        self.coming = made_room_for

    def unloaded(self, name: str) -> None:
        """It is really gone from memory, asked for or not; what it was generating is reported by `finished`."""
        model = self.models[name]
        if model.phase != "absent":
            model.phase = "absent"
            self.free_bytes += model.memory_bytes

    def measured(self, free_bytes: int) -> None:
        """What the machine has left. Between the begin and the end of a change it says little and is ignored."""
        if not self.changing:
            self.free_bytes = free_bytes

    def measured_speed(self, name: str, tokens_per_s: float) -> None:
        self.models[name].tokens_per_s = tokens_per_s

    @property
    def changing(self) -> bool:
        return any(model.phase in ("loading", "unloading") for model in self.models.values())

    def room(self, name: str, urgency: Urgency) -> int:
        """How many more of this model and urgency the node may take from the bus: what it could hold next."""
        return self.models[name].spec.slots - len(self.queue.lines[name][urgency])

    def headroom_bytes(self, names: Sequence[str]) -> int:
        """What stays free beside these models."""
        giant = self.total_bytes * self.rules.giant_share
        alone = any(self.models[name].memory_bytes > giant for name in names)
        return self.rules.giant_headroom_bytes if alone else self.rules.headroom_bytes

    def never_fits(self, name: str) -> tuple[int, int] | None:
        """(needed, had) bytes of a model that this machine could not hold if it held nothing else but the pinned."""
        kept = [other for other, model in self.models.items() if model.spec.pinned and other != name]
        needed = self.models[name].memory_bytes + self.headroom_bytes([name, *kept])
        had = self.total_bytes - sum(self.models[other].memory_bytes for other in kept)
        return (needed, had) if needed > had else None
