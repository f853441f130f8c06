"""As listed: the agent's, alias's or task's own order."""

from router.core.strategies.base import Option


def agent_preference(option: Option) -> float:
    return -option.position
