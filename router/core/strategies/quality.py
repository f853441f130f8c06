"""The best answer, whatever it costs."""

from router.core.strategies.base import Option


def quality(option: Option) -> float:
    return option.model.quality
