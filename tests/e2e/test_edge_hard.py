"""Callers that are broken, slow, greedy or hostile: typed answers, bounded memory, and nobody else notices."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import httpx
import psutil
import pytest

import ops.edge
from adapters.edge import body, line, server
from subjects import parse
from subjects.streams import REPLIES, REQUESTS
from tests.support.callers import ASKED, CHAT, JSON, at_most, connected, fair, headers_of, parsed, posted, raw, told
from tests.support.edge import edge_on
from tests.support.edge_process import edge_process
from tests.support.inside import inside

MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'
BODIES = {
    "empty": b"",
    "no JSON": b"hello",
    "half of it": b'{"messages":[',
    "a list": b"[]",
    "nothing": b"null",
    "a wrong type": b'{"messages":"hi"}',
    "a wrong type within": b'{"messages":[{"role":"user","content":5}]}',
    "no messages": b'{"messages":[]}',
    "100,000 deep": b'{%s,"metadata":{"a":' % MESSAGES + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "150 deep": b'{%s,"metadata":{"a":' % MESSAGES + b"[" * 150 + b"]" * 150 + b"}}",
    "10,000 digits": b'{%s,"seed":%s}' % (MESSAGES, b"9" * 10_000),
    "NaN": b'{%s,"temperature":NaN}' % MESSAGES,
    "NaN where anything may be": b'{%s,"metadata":{"a":NaN}}' % MESSAGES,
    "Infinity where anything may be": b'{%s,"metadata":{"a":-Infinity}}' % MESSAGES,
    "a lone surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "bad UTF-8": b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
    "UTF-16": json.dumps(ASKED).encode("utf-16"),
    "a bare NUL": b'{"messages":[{"role":"user","content":"a\0b"}]}',
    "a NUL": b'{"messages":[{"role":"user","content":"a\\u0000b"}]}',
}
TAKEN = {
    "a byte order mark": b"\xef\xbb\xbf{%s}" % MESSAGES,
    "an unknown field": b'{%s,"flavour":"mint","extra":{"a":[1,2]}}' % MESSAGES,
    "a key twice": b'{"model":"nobody","model":"auto",%s}' % MESSAGES,
}
RIDS = ["*", ">", "a.b", "a b", "$JS.API.STREAM.DELETE.LLM_REQUESTS", "a" * 5_000, "ключ", "seq-1"]


async def test_what_cannot_be_read_is_refused_and_says_why() -> None:
    async with inside() as whole, edge_on(whole.url) as http:
        for what, body in BODIES.items():
            response = await http.post(CHAT, content=body, headers=JSON)
            assert response.status_code == 400, what
            assert told(response)["type"] == "bad_request", what
        for what, body in TAKEN.items():
            assert (await http.post(CHAT, content=body, headers=JSON)).status_code == 200, what
        response = await http.post(CHAT, content=b"<a/>", headers={"content-type": "application/xml"})
        assert "application/xml" in told(response)["message"]


async def test_no_door_and_no_method_are_typed_too() -> None:
    async with inside(nodes=False, routers=0) as whole, edge_on(whole.url) as http:
        assert told(missing := await http.get("/v1/nothing"))["type"] == "no_route"
        assert missing.status_code == 404
        assert told(wrong := await http.delete(CHAT))["type"] == "bad_request"
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert "takes POST, not DELETE" in told(wrong)["message"]
        for door in (CHAT, "/v1/messages", "/v1/embeddings", "/route"):
            assert "the body is empty" in told(empty := await http.post(door))["message"]
            assert empty.status_code == 400


async def test_large_bodies_are_refused_and_held_by_nobody() -> None:
    async with inside() as whole, edge_process(whole.url) as (http, process):
        body = b'{%s,"extra":"%s"}' % (MESSAGES, b"x" * 8_000_000)

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 65_536):
                yield body[at : at + 65_536]

        async def send(n: int) -> httpx.Response:
            return await http.post(CHAT, content=body if n % 2 else pieces(), headers=JSON)

        async with fair(http), at_most(100_000_000, process):
            for response in await asyncio.gather(*map(send, range(50))):
                assert (response.status_code, told(response)["type"]) in (
                    (413, "payload_too_large"),
                    (503, "overloaded"),  # too many at once; it is worth another try
                )


async def test_a_body_that_grows_when_it_is_written_anew_is_refused_too() -> None:
    async with inside() as whole, edge_on(whole.url) as http:
        numbers = b",".join([b"1e15"] * 45_000)
        body = b'{%s,"metadata":{"a":[%s],"b":"%s"}}' % (MESSAGES, numbers, b"x" * 1_700_000)
        assert len(body) < 2_000_000
        response = await http.post(CHAT, content=body, headers=JSON)
        assert response.status_code == 413
        assert told(response)["type"] == "payload_too_large"


HEADS = {
    "ten thousand headers": (b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 10_000, 431),
    "a header of a megabyte": (b"GET /health HTTP/1.1\r\na: " + b"b" * 1_000_000 + b"\r\n\r\n", 431),
    "a header's name of 100 KB": (b"GET /health HTTP/1.1\r\n" + b"b" * 100_000 + b": a\r\n\r\n", 431),
    "an address of 10 KB": (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n", 414),
    "trailers without end": (
        b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 10_000,
        431,
    ),
    "a chunk's extension without end": (
        b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"a" * 1_000_000,
        431,
    ),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10, 400),
    "a length twice": (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
    "a length and chunks": (
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n",
        400,
    ),
    "a NUL in a header": (b"GET /health HTTP/1.1\r\na: b\0c\r\n\r\n", 400),
    "a line feed in a header": (b"GET /health HTTP/1.1\r\na: b\nNats-Msg-Id: 1\r\n\r\n", 400),
    "a tunnel": (b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", 405),
    "another method": (b"BREW /health HTTP/1.1\r\n\r\n", 400),
    "bad UTF-8 in the path": (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", 400),
}


async def test_heads_that_are_too_much_or_none_are_refused_in_typed_json() -> None:
    async with inside(nodes=False, routers=0) as whole, edge_on(whole.url) as http:
        if True:
            for what, (head, status) in HEADS.items():
                response = await raw(http, head)
                assert response.status_code == status, what
                assert told(response)["type"] == "bad_request", what
                assert response.headers["connection"] == "close", what


async def test_a_flood_of_headers_costs_nobody_else_anything() -> None:
    async with inside() as whole, edge_process(whole.url) as (http, process):
        head, _ = HEADS["ten thousand headers"]
        async with fair(http), at_most(40_000_000, process):
            answers = await asyncio.gather(*(raw(http, head) for _ in range(200)))
        assert {answer.status_code for answer in answers} == {431}


async def test_forged_headers_do_not_reach_the_bus() -> None:
    forged = {
        "Nats-Msg-Id": "one", "Nats-Expected-Stream": "X", "Nats-TTL": "1s", "Nats-Rollup": "all", "Llm-Client": "root",
        "Llm-Cost-Usd": "0", "Llm-Request-Id": "stolen", "Llm-Deadline-Ms": "1", "traceparent": "no\ttrace",
        "x-other": "y" * 20_000,
    }  # fmt: skip
    async with inside() as whole, edge_on(whole.url) as http:
        answers = [await http.post(CHAT, json=ASKED, headers=forged) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        letters = [letter async for letter in whole.bus.read(REQUESTS)]
        assert len(letters) == 2
        assert all(letter.subject.split(".")[3] == "local" for letter in letters)
        held = " ".join(f"{name}={value}" for letter in letters for name, value in letter.headers.items())
        assert "Llm-Client=local" in held
        assert not [name for name, value in forged.items() if f"{name}={value}".lower() in held.lower()]


async def test_no_id_leaves_the_grammar() -> None:
    async with inside() as whole, edge_on(whole.url) as http:
        for rid in RIDS:
            response = await http.post(CHAT, json=ASKED, headers=[(b"idempotency-key", rid.encode())])
            assert response.status_code == 200, rid
            for name in (b"x-llm-capability", b"x-llm-client"):
                response = await http.post(CHAT, json=ASKED, headers=[(name, rid.encode())])
                assert response.status_code in ((200, 404) if rid == "seq-1" else (400,)), (name, rid)
                told(response) if response.is_error else None
        subjects = {letter.subject async for letter in whole.bus.read(REQUESTS)}
        assert all(parse(subject) for subject in subjects)
        assert len(subjects) == 3


async def test_500_callers_that_never_end_their_heads_are_sent_away_and_disturb_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "HEAD_S", 1.0)
    async with inside() as whole, edge_on(whole.url) as http, AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(connected(http)) for _ in range(500)]

        async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(b"POST /v1/messages HTTP/1.1\r\n")
            said = asyncio.create_task(reader.read())
            while not (await asyncio.wait([said], timeout=0.2))[0]:
                writer.write(b"a: b\r\n")
            return await said

        async with fair(http):
            answers = await asyncio.gather(*(dribble(*caller) for caller in callers))
        for answer in answers:
            refused = parsed(answer)
            assert refused.status_code == 408
            assert told(refused)
            assert refused.json()["type"] == "error"  # as Anthropic's clients read it


async def test_callers_that_say_nothing_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.3)
    async with inside(nodes=False, routers=0) as whole, edge_on(whole.url) as http, AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(connected(http)) for _ in range(100)]
        async with asyncio.timeout(10):
            assert [await reader.read() for reader, _ in callers] == [b""] * 100


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.3)
    monkeypatch.setattr(server, "LINGER_S", 0.3)
    async with inside(nodes=False, routers=0) as whole, edge_on(whole.url) as http, connected(http) as (reader, writer):
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{")
        async with asyncio.timeout(10):
            response = parsed(await reader.read())  # and then the connection is closed
        assert (response.status_code, told(response)["type"]) == (400, "bad_request")


async def test_a_full_edge_makes_room_for_who_asks_and_refuses_only_when_all_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops.edge, "CONNECTIONS", 20)
    async with inside() as whole, edge_on(whole.url) as http, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(http)) for _ in range(30)]
        assert (await http.post(CHAT, json=ASKED)).status_code == 200
        async with asyncio.timeout(10):
            assert await idle[0][0].read() == b""
        waiting = json.dumps({**ASKED, "metadata": {"loopback": {"delay_ms": 60_000}}}).encode()
        for _ in range(20):
            _, writer = await stack.enter_async_context(connected(http))
            writer.write(posted(waiting))
        while len([letter async for letter in whole.bus.read(REQUESTS)]) < 20:
            await asyncio.sleep(0.02)
        response = await raw(http, posted(json.dumps(ASKED).encode()))
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert told(response)["type"] == "overloaded"


async def test_who_does_not_read_holds_little_and_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "SEND_S", 0.5)
    monkeypatch.setattr(server, "LINGER_S", 0.2)
    long = {"loopback": {"text": "길다 " * 150_000, "pieces": 500}}
    asked = {**ASKED, "stream": True, "metadata": long}
    async with inside() as whole, edge_on(whole.url) as http:
        deaf = socket.create_connection((http.base_url.host, http.base_url.port or 0))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        own = deaf.getsockname()[1]
        reader, writer = await asyncio.open_connection(sock=deaf, limit=1)
        writer.write(posted(json.dumps(asked).encode()) * 8)  # more than the system's own buffers take
        async with fair(http), asyncio.timeout(20):
            while any(each.raddr and each.raddr.port == own for each in psutil.Process().net_connections("tcp")):
                await asyncio.sleep(0.1)
        assert isinstance(reader.exception(), ConnectionResetError)


async def test_who_hangs_up_cancels_what_he_asked_first_though_more_came_behind_it() -> None:
    waiting = json.dumps({**ASKED, "metadata": {"loopback": {"delay_ms": 60_000}}}).encode()
    async with inside() as whole, edge_on(whole.url) as http:
        async with connected(http) as (_, writer), asyncio.timeout(10):
            writer.write(posted(waiting) * 2)
            while not [letter async for letter in whole.bus.read(REQUESTS)]:
                await asyncio.sleep(0.02)
        async with asyncio.timeout(10):
            while not (replies := [letter async for letter in whole.bus.read(REPLIES)]):
                await asyncio.sleep(0.02)
        assert replies[0].headers["Llm-Error"] == "cancelled"


async def test_an_offer_of_another_protocol_is_declined_by_an_answer() -> None:
    body = json.dumps(ASKED).encode()
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    head, _, _ = posted(body).partition(b"\r\n\r\n")
    async with inside() as whole, edge_on(whole.url) as http:
        for parts in ([head + b"\r\n" + offer + b"\r\n" + body], [head + b"\r\n" + offer + b"\r\n", body]):
            async with connected(http) as (reader, writer), asyncio.timeout(10):
                for part in parts * 2:
                    writer.write(part)
                    await asyncio.sleep(0)
                for _ in range(2):
                    answer = await reader.readuntil(b"\r\n\r\n")
                    assert answer.startswith(b"HTTP/1.1 200 ")
                    await reader.readexactly(int(headers_of(answer)["content-length"]))


async def test_requests_may_come_before_answers_but_not_without_end() -> None:
    async with inside() as whole, edge_on(whole.url) as http, connected(http) as (reader, writer):
        one = posted(json.dumps(ASKED).encode())
        writer.write(one * 8)
        for _ in range(8):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(int(headers_of(head)["content-length"]))
        writer.write(one + b"GET / HTTP/1.1\r\n\r\n" * 5_000)
        async with asyncio.timeout(10):
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
