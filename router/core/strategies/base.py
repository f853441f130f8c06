"""What a strategy is: a pure function that scores one place; the highest score goes first."""

from collections.abc import Callable
from typing import NamedTuple

from schemas.heartbeat import ModelState
from schemas.policy import Model

LOAD_MS_PER_GB = 500
"""As a node assumes until it has measured."""


class Option(NamedTuple):
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

    @property
    def load(self) -> float:
        """Work per slot; 1 and more means: it would wait."""
        state = self.state
        return max(0, state.running + state.waiting + self.sent) / max(state.slots, 1)

    @property
    def generation_ms(self) -> float:
        return self.tokens_out * 1000 / (self.state.tokens_per_s or self.model.tokens_per_s)

    @property
    def into_memory_ms(self) -> float:
        """0 when the model is there, or that is nobody's business."""
        return 0.0 if self.state.in_memory in (None, "resident") else self.model.memory_gb * LOAD_MS_PER_GB

    @property
    def wait_ms(self) -> float:
        """Until it would begin: what is before it, and bringing it into memory."""
        return int(self.load) * self.generation_ms + self.into_memory_ms


Strategy = Callable[[Option], float]
