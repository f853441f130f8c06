"""How to choose among places that could answer. A new one: a file with one function, and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from router.core.strategies.agent_preference import agent_preference
from router.core.strategies.base import Option, Strategy
from router.core.strategies.cost import cost
from router.core.strategies.quality import quality
from router.core.strategies.speed import speed

STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType(
    {
        "agent_preference": agent_preference,
        "quality": quality,
        "cost": cost,
        "speed": speed,
    }
)

__all__ = ["STRATEGIES", "Option", "Strategy"]
