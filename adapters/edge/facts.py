"""The facts of a request as response headers, the same that a reply on the bus carries."""

from typing import Any, Final

from schemas import headers as h
from schemas.chunk import Chunk
from schemas.reply import Reply

REQUEST_ID: Final = "x-llm-request-id"
REQUEST_IDS: Final = (REQUEST_ID, "request-id", "x-request-id")
"""Ours, and what the vendors' clients look for."""

Pairs = list[tuple[bytes, bytes]]
_TOLD: Final = (
    h.STATUS, h.ERROR, h.MODEL, h.NODE, h.PROVIDER, h.COST_USD, h.WASTED_USD, h.LATENCY_MS, h.QUEUE_MS, h.TTFT_MS,
    h.TOKENS_IN, h.TOKENS_OUT, h.ATTEMPTS, h.DECISION, h.POLICY,
)  # fmt: skip


def of_request(rid: str) -> Pairs:
    return [(name.encode(), rid.encode()) for name in REQUEST_IDS]


def of_chunk(rid: str, chunk: Chunk | None) -> Pairs:
    """What is known when a stream begins."""
    pairs = of_request(rid)
    if chunk is not None:
        pairs += [
            (f"x-llm-{name}".encode(), value.encode())
            for name in ("model", "node", "provider")
            if (value := getattr(chunk, name))
        ]
        pairs.append((b"x-llm-attempts", chunk.attempt_id.partition(".")[0].encode()))
    return pairs


def of_reply(reply: Reply) -> Pairs:
    facts = reply.headers()
    told = [(name.lower(), facts[name]) for name in _TOLD if name in facts]
    # Headers are Latin-1; a decision is words from closed lists and the policy's names.
    return of_request(reply.request_id) + [
        (f"x-{name}".encode(), value.encode("latin-1", "replace")) for name, value in told
    ]


def within(reply: Reply) -> dict[str, Any]:
    """The same for the end of a stream, whose headers are long gone."""
    facts = reply.headers()
    names = (h.REQUEST_ID, *_TOLD)
    return {name.lower().removeprefix("llm-").replace("-", "_"): facts[name] for name in names if name in facts}
