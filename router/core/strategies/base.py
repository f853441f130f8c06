"""What a strategy is: a pure function that scores one place; the highest score goes first."""

from collections.abc import Callable
from typing import NamedTuple

from schemas.heartbeat import ModelState
from schemas.policy import Model


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


Strategy = Callable[[Option], float]
