"""The body of an HTTP request, read within bounds: of its own, of time, and of all that are arriving together."""

import asyncio
from typing import Final

from starlette.requests import Request

from adapters.edge.errors import JSON
from router.errors import RequestFailedError
from schemas.failure import ErrorType
from schemas.policy import Limits
from schemas.values import has_more_values

BODY_S: Final = 30.0
"""What a body may take to arrive."""


class Room:
    """What all bodies that are still arriving may hold together, in this process."""

    def __init__(self, most_bytes: int) -> None:
        self._left_bytes = most_bytes

    def take(self, size: int) -> bool:
        if size > self._left_bytes:
            return False
        self._left_bytes -= size
        return True

    def give_back(self, size: int) -> None:
        self._left_bytes += size


ARRIVING: Final = Room(64_000_000)


async def read_body(request: Request, limits: Limits, rid: str) -> bytes:
    """Raises RequestFailedError: payload_too_large, bad_request, overloaded."""
    limit = limits.max_body_bytes
    content_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if content_type not in (JSON, "text/plain") and not content_type.endswith("+json"):
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, f"send {JSON}, not {content_type[:64]!r}")
    if int(_digits(request.headers.get("content-length", ""))) > limit:
        raise _too_large(rid, limit)
    parts: list[bytes] = []
    size = taken = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(rid, limit)
                if not ARRIVING.take(len(part)):
                    words = "too many large requests are arriving at once"
                    raise RequestFailedError.of(ErrorType.OVERLOADED, rid, words, retry_after_ms=1_000)
                taken = size
                parts.append(part)
    except TimeoutError:
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, f"the body took over {BODY_S:g} s") from None
    finally:
        ARRIVING.give_back(taken)
    body = b"".join(parts)
    if has_more_values(body, limits.max_values):
        words = f"the body has over {limits.max_values} JSON values; send fewer, or data as text in a string"
        raise RequestFailedError.of(ErrorType.BAD_REQUEST, rid, words)
    return body


def _too_large(rid: str, limit: int) -> RequestFailedError:
    return RequestFailedError.of(ErrorType.PAYLOAD_TOO_LARGE, rid, f"at most {limit} bytes are taken")


def _digits(length: str) -> str:
    return length if length.isascii() and length.isdigit() and len(length) < 20 else "0"
