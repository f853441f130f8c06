"""What the machine says of its memory."""

import psutil

from adapters.host.memory import Memory, memory


def test_room_is_what_is_available_less_the_headroom_and_never_negative() -> None:
    assert Memory(64, 30).room_bytes(5) == 25
    assert Memory(64, 3).room_bytes(5) == 0


def test_it_is_this_machines() -> None:
    found = memory()
    assert found.total_bytes == psutil.virtual_memory().total
    assert 0 < found.available_bytes <= found.total_bytes
