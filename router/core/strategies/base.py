"""What a strategy is: a pure function that scores one place; the highest score goes first."""

from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.heartbeat import ModelState
from schemas.policy import Model

LOAD_MS_PER_GB = 500
"""As a node assumes until it has measured."""


@dataclass(slots=True)
class Option:
    """A place that could answer, and what scoring may know of it."""

    name: str
    model: Model
    node: str
    state: ModelState
    position: int
    """Its model's place in the route, from 0."""
    tokens_in: int
    tokens_out: int
    """The most it may say, or a typical answer."""
    sent: int = 0
    """What was sent there since its node was last heard, less what came back."""

    load: float = field(init=False)
    """Work per slot; 1 and more means: it would wait."""
    generation_ms: float = field(init=False)
    into_memory_ms: float = field(init=False)
    """0 when the model is there, or that is nobody's business."""
    wait_ms: float = field(init=False)
    """Until it would begin: what is before it, and bringing it into memory."""

    def __post_init__(self) -> None:
        state, model = self.state, self.model
        self.load = max(0, state.running + state.waiting + self.sent) / max(state.slots, 1)
        self.generation_ms = self.tokens_out * 1000 / (state.tokens_per_s or model.tokens_per_s)
        self.into_memory_ms = 0.0 if state.in_memory in (None, "resident") else model.memory_gb * LOAD_MS_PER_GB
        self.wait_ms = int(self.load) * self.generation_ms + self.into_memory_ms

    def in_time(self, left_ms: float) -> bool:
        """Whether it may be expected to answer within the time that is left; a stand-in takes none."""
        return self.state.stand_in or self.wait_ms + self.generation_ms <= left_ms


Strategy = Callable[[Option], float]
