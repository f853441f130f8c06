"""What the operating system says of this machine."""

from collections.abc import Callable
from typing import Any, Final, Literal

import psutil

from schemas.heartbeat import Host

POWER: Final[dict[bool | None, Literal["mains", "battery"]]] = {True: "mains", False: "battery"}
"""By whether it is plugged in, which it may not know."""


def look() -> Host:
    """Cheap enough for every second. What this machine does not say is None: most servers have no battery."""
    memory, battery = psutil.virtual_memory(), _battery()
    load = _load()
    return Host(
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.available,
        cpus=psutil.cpu_count(),
        load_1m=None if load is None else round(load[0], 2),
        battery_percent=None if battery is None else round(battery.percent, 1),
        power=None if battery is None else POWER.get(battery.power_plugged),
    )


def _load() -> tuple[float, float, float] | None:
    try:
        return psutil.getloadavg()
    except OSError:
        return None


def _battery() -> Any:
    # Not every system has the call; where it has, a driver that fails must not end the heartbeats.
    sensors: Callable[[], Any] | None = getattr(psutil, "sensors_battery", None)
    try:
        return sensors() if sensors else None
    except (OSError, RuntimeError, ValueError):
        return None
