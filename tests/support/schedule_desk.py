"""A node of 64 GB and the time, for the tests of what it does next: one call per event, then its orders."""

from router.core.orders import Orders
from router.core.residency import GB, ModelSpec, NodeState, Rules
from router.core.schedule import schedule
from router.core.waiting import Job
from subjects.grammar import Urgency

ARCHITECT = ModelSpec("architect", 52 * GB, 25)
CODER = ModelSpec("coder", 19 * GB, 30)
REVIEWER = ModelSpec("reviewer", 9 * GB, 40, slots=2)
JUDGE = ModelSpec("judge", 6 * GB, 35, slots=4, pinned=True)
FAR_MS = 10**9


class Desk:
    """A node of 64 GB and the time."""

    def __init__(self, *specs: ModelSpec, total_gb: float = 64, rules: Rules | None = None) -> None:
        self.node = NodeState(specs or (ARCHITECT, CODER, REVIEWER), round(total_gb * GB), rules=rules)
        self.now_ms = 0
        self._ticket = 0

    def ask(self, model: str, urgency: Urgency = "normal", *, tokens: int = 300, timeout_ms: int = FAR_MS) -> int:
        self._ticket += 1
        deadline_ms = self.now_ms + timeout_ms
        job = Job(self._ticket, model, urgency, self.now_ms, deadline_ms, tokens)
        assert self.node.arrived(job, self.now_ms)
        return self._ticket

    def hold(self, *models: str) -> None:
        for model in models:
            self.node.loaded(model, self.now_ms)
            self.node.models[model].fresh = False

    def run(self, model: str, urgency: Urgency = "normal", *, tokens: int = 300) -> int:
        ticket = self.ask(model, urgency, tokens=tokens)
        self.node.started(ticket, self.now_ms)
        return ticket

    def at(self, now_ms: int) -> Orders:
        self.now_ms = now_ms
        return self.orders

    @property
    def orders(self) -> Orders:
        return schedule(self.node, self.now_ms)

    @property
    def started(self) -> list[int]:
        return [start.ticket for start in self.orders.starts]

    @property
    def waits(self) -> dict[str, str]:
        """Why each model that is wanted is not loaded."""
        return {wait.model: wait.reason for wait in self.orders.waits}
