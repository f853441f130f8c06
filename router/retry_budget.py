"""How often failed targets may be called again: a share of the traffic, so that retries never become a storm."""

from collections import deque
from typing import Final

SHARE: Final = 0.1
FLOOR: Final = 3
"""Retries that the window allows whatever the traffic."""
WINDOW_S: Final = 10


class RetryBudget:
    """Of one router process, over the last seconds. Times are milliseconds of any one clock."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque()
        """[second, requests, retries], oldest first."""

    def requested(self, now_ms: int) -> None:
        self._now(now_ms)[1] += 1

    def retried(self, now_ms: int) -> None:
        self._now(now_ms)[2] += 1

    def left(self, now_ms: int) -> int:
        """How many retries are allowed now."""
        self._now(now_ms)
        requests = sum(second[1] for second in self._seconds)
        retries = sum(second[2] for second in self._seconds)
        return max(0, max(FLOOR, int(requests * SHARE)) - retries)

    def _now(self, now_ms: int) -> list[int]:
        second = now_ms // 1000
        seconds = self._seconds
        if not seconds or seconds[-1][0] < second:
            seconds.append([second, 0, 0])
            while seconds[0][0] <= second - WINDOW_S:
                seconds.popleft()
        return seconds[-1]
