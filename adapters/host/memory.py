"""What memory this machine has. Where CPU and GPU share it, as on Apple's chips, this is what models live in too."""

from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Memory:
    total_bytes: int
    available_bytes: int
    """What can be had without swapping: free memory, and what the system would give up for it, such as its caches."""

    def room_bytes(self, headroom_bytes: int) -> int:
        """What a load may take so that `headroom_bytes` stay for everything else; 0 when there is none."""
        return max(0, self.available_bytes - headroom_bytes)


def memory() -> Memory:
    """As it is now; costs some microseconds."""
    measured = psutil.virtual_memory()
    return Memory(measured.total, measured.available)
