"""The quickest answer: generation at the model's rate, behind its load and what already runs and waits there."""

from router.core.strategies.base import Option


def speed(option: Option) -> float:
    return -(option.into_memory_ms + option.generation_ms * (1 + option.load)) / 1000
