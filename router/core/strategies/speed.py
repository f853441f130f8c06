"""The quickest answer: generation at the model's rate, behind what already runs and waits there."""

from router.core.strategies.base import Option


def speed(option: Option) -> float:
    return -(option.tokens_out / option.model.tokens_per_s) * (1 + option.state.load)
