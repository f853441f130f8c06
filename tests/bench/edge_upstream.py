"""The upstream of the edge's benchmark: OpenAI's chat completions from a process of its own, as fast as Python can.

POST /<delay_ms>-<gap_ms>/...   50 tokens after the delay: one JSON object, or with `"stream": true` 50 events, so far
                                apart, or all in one write

python -m tests.bench.edge_upstream     prints its port
"""

import asyncio
import json
import sys
from typing import Any, Final, cast

import uvloop

TOKENS: Final = 50
FIRST: Final = b"tok00"
LAST: Final = b"tok49"
USAGE: Final = {"prompt_tokens": 400, "completion_tokens": TOKENS, "total_tokens": 400 + TOKENS}
BASE: Final = {"id": "chatcmpl-mock", "created": 1_790_000_000, "model": "m"}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _event(delta: dict[str, str] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    data = _json({**BASE, "object": "chat.completion.chunk", "choices": choices, **more})
    framed = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(framed), framed)


def _plain() -> bytes:
    text = "".join(f"tok{n:02} " for n in range(TOKENS))
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "stop"}
    body = _json({**BASE, "object": "chat.completion", "choices": [choice], "usage": USAGE})
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


PLAIN: Final = _plain()
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
OPENING: Final = HEAD + _event({"role": "assistant", "content": ""})
PIECES: Final = [_event({"content": f"tok{n:02} "}) for n in range(TOKENS)]
ENDING: Final = _event({}, "stop") + _event(None, usage=USAGE) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
BURST: Final = OPENING + b"".join(PIECES) + ENDING
UNKNOWN: Final = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One request at a time, kept alive."""

    def __init__(self) -> None:
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, blank, body = self._read.partition(b"\r\n\r\n")
        if not blank:
            return
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if len(body) < length:
            return
        self._read = b""
        method, path, _ = head.split(b" ", 2)
        if method != b"POST":
            self._transport.write(UNKNOWN)
            return
        delay_ms, gap_ms = map(int, path.split(b"/")[1].split(b"-"))
        streamed = b'"stream": true' in body or b'"stream":true' in body
        self._answer(streamed, gap_ms / 1000) if not delay_ms else self._loop.call_later(
            delay_ms / 1000, self._answer, streamed, gap_ms / 1000
        )

    def _answer(self, streamed: bool, gap_s: float) -> None:
        if not streamed:
            self._transport.write(PLAIN)
        elif not gap_s:
            self._transport.write(BURST)
        else:
            self._transport.write(OPENING)
            self._piece(0, gap_s)

    def _piece(self, number: int, gap_s: float) -> None:
        if number == TOKENS:
            self._transport.write(ENDING)
        else:
            self._transport.write(PIECES[number])
            self._loop.call_later(gap_s, self._piece, number + 1, gap_s)


async def serve() -> None:
    """Until stdin ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    uvloop.run(serve())
