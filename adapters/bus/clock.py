"""The broker's clock, carried by the local monotonic clock: a wrong or jumping local clock changes nothing."""

import time

STEP_MS = 5_000


class BusClock:
    """Set from the broker's own timestamps; between those, and whatever the machine's clock does, it only runs on."""

    def __init__(self) -> None:
        self._offset_ms: float | None = None
        self._latest_ms = 0

    def set(self, broker_ms: float, asked_at_s: float, answered_at_s: float) -> None:
        """The broker said `broker_ms` between two readings of `time.monotonic`."""
        self._offset_ms = broker_ms - (asked_at_s + answered_at_s) * 500
        if self._latest_ms - broker_ms > STEP_MS:
            self._latest_ms = 0  # the broker's own clock was set back: stand still with it no longer

    def now_ms(self) -> int:
        if self._offset_ms is None:
            raise RuntimeError("the broker's clock was never read")
        self._latest_ms = max(self._latest_ms, round(self._offset_ms + time.monotonic() * 1000))
        return self._latest_ms
