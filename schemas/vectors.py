"""Vectors as they travel: base64 of little-endian float32, a quarter of what the same numbers take as JSON."""

import struct
from base64 import b64decode, b64encode
from collections.abc import Sequence
from math import isfinite
from typing import Final

FLOAT_BYTES: Final = 4


def packed(vector: Sequence[float]) -> str:
    """Raises ValueError for what is no vector: no numbers, or some that a float32 cannot hold."""
    if not vector or not all(map(isfinite, vector)):
        raise ValueError("a vector without numbers")
    try:
        return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (OverflowError, struct.error) as error:
        raise ValueError(f"not a vector of float32: {error}") from None


def unpacked(text: str) -> tuple[float, ...]:
    """Raises ValueError for what is no vector."""
    data = b64decode(text, validate=True)
    if not data or len(data) % FLOAT_BYTES:
        raise ValueError(f"{len(data)} bytes are no vector of float32")
    vector = struct.unpack(f"<{len(data) // FLOAT_BYTES}f", data)
    if not all(map(isfinite, vector)):
        raise ValueError("a vector with numbers that are none")
    return vector
