"""Streams over HTTP tell the truth: whole or an error, alive while a model loads, gone when their caller is."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from adapters.edge.ports import Edge
from ops import edge as served
from router.ports import Letter
from schemas import Chunk, Reply, ReplyMessage, Timings
from schemas import headers as h
from schemas.request import request_hash
from subjects.streams import CANCELS, CHUNKS, REQUESTS
from tests.e2e.test_edge_requests import ASYNC, CHAT, KOREAN, SOON_S, asked, key, said, until
from tests.support.edge import Edges, edge_on
from tests.support.faults import OOPS, TOKENS, Held, cut, once
from tests.support.inside import Inside
from tests.support.upstreams import alone, patient, upstreams

pytestmark = pytest.mark.asyncio(loop_scope="module")


def events(stream: str) -> list[dict[str, Any]]:
    """Name, id and data of each."""
    found = []
    for each in filter(None, stream.split("\n\n")):
        fields = dict(line.partition(": ")[::2] for line in each.split("\n") if not line.startswith(":"))
        if fields:
            found.append({"name": fields.get("event"), "id": fields.get("id"), **json.loads(fields["data"])})
    return found


def texts(found: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in found if event["name"] == "piece")


def ends_with_an_error(stream: str) -> dict[str, Any]:
    """The error of a stream of chat chunks that cannot be taken for a whole one."""
    assert "[DONE]" not in stream
    assert '"finish_reason":"' not in stream
    last = stream.strip().split("\n\n")[-1]
    return dict(json.loads(last.removeprefix("data: "))["error"])


async def soon(what: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(what, SOON_S)


async def test_the_events_of_a_request_are_heard_by_any_number_at_any_edge_and_from_any_place(two: Edges) -> None:
    whole, http, another = two
    await http.post(CHAT, json=asked(stream=True, pieces=12, piece_ms=20), headers=key("r1", **ASYNC))
    at = "/v1/requests/r1/events"
    heard = await asyncio.gather(*(each.get(at) for each in (http, another, another)))
    for response in heard:
        *pieces, reply = events(response.text)
        assert [piece["id"] for piece in pieces] == [f"1.1:{n}" for n in range(12)]
        assert (texts(pieces), reply["name"], reply["message"]["content"]) == (KOREAN, "reply", KOREAN)
        assert pieces[0]["model"] == reply["model"] == "echo"
    late = events((await another.get(at, headers={"last-event-id": "1.1:7"})).text)
    assert [event["id"] for event in late] == [*(f"1.1:{n}" for n in range(8, 12)), "1.1:end"]
    assert events((await another.get(f"{at}?after=1.1:11")).text)[0]["name"] == "reply"
    assert (await http.get(at, headers={"last-event-id": "1.1:end"})).status_code == 204
    for nonsense in ("7", "1.1", "1.1:-1", "x:1", "1.1:7;"):
        refused = await http.get(at, headers={"last-event-id": nonsense})
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "bad_request")
    await whole.bus.client.request(f"$JS.API.STREAM.PURGE.{CHUNKS}", b"")
    (only,) = events((await http.get(at)).text)
    assert (only["name"], only["message"]["content"]) == ("reply", KOREAN)


async def test_a_request_that_does_not_stream_has_its_end_as_its_only_event(two: Edges) -> None:
    http = two.http
    await http.post(CHAT, json=asked(delay_ms=100), headers=key("r1", **ASYNC))
    (reply,) = events((await http.get("/v1/requests/r1/events")).text)
    assert (reply["name"], reply["message"]["content"]) == ("reply", KOREAN)
    await http.post(CHAT, json={**asked(), "model": "nobody"}, headers=key("r2", **ASYNC))
    (error,) = events((await http.get("/v1/requests/r2/events")).text)
    assert (error["name"], error["error"]["type"], error["reply"]["status"]) == ("error", "no_route", "error")


async def test_the_events_tell_when_the_answer_starts_over() -> None:
    async with upstreams(alone) as up, edge_on(up.bus.url) as http:
        up.primary.script = once(cut("rst"))
        await http.post(CHAT, json=asked(stream=True), headers=key("r1", **ASYNC))
        found = events((await http.get("/v1/requests/r1/events")).text)
        over = [event["name"] for event in found].index("attempt")
        assert texts(found[:over]) == "".join(TOKENS[:over])
        assert (found[over]["id"], found[over]["model"]) == ("2.1:0", "primary")
        assert texts(found[over:]) == found[-1]["message"]["content"] == "primary"
        resumed = events((await http.get("/v1/requests/r1/events?after=1.1:5")).text)
        assert [event["id"] for event in resumed] == [event["id"] for event in found[over:]]


async def test_who_watches_and_leaves_cancels_nothing() -> None:
    go = asyncio.Event()
    async with upstreams(patient) as up, edge_on(up.bus.url) as http:
        up.primary.script = Held(go)
        await http.post(CHAT, json=asked(stream=True), headers=key("r1", **ASYNC))
        async with http.stream("GET", "/v1/requests/r1/events") as watched:
            async for line in watched.aiter_lines():
                if line == "id: 1.1:4":
                    break
        go.set()
        assert (await until(http, "r1", "ok", "cancelled"))["state"] == "ok"
        assert await up.bus.bus.last(CANCELS, ">") is None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_who_hangs_up_closes_the_upstreams_connection_within_a_second(stream: bool) -> None:
    async with upstreams(patient) as up, edge_on(up.bus.url) as http:
        up.primary.script = Held(asyncio.Event())
        waiting = asyncio.create_task(first_bytes(http, asked(stream=stream), key("r1")))
        await soon(up.primary.arrived.wait())
        if stream:
            assert b"delta" in await soon(waiting)
        waiting.cancel()
        await asyncio.wait((waiting,))
        await asyncio.wait_for(up.primary.exchanges[0].gone.wait(), 1)
        told = await until(http, "r1", "cancelled")
        assert told["error"]["type"] == "cancelled"


async def first_bytes(http: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str]) -> bytes:
    """And then it hangs up."""
    async with http.stream("POST", CHAT, json=body, headers=headers) as response:
        return await anext(response.aiter_raw())


async def test_a_hang_up_stops_nothing_that_somebody_else_asked_for_too() -> None:
    go = asyncio.Event()
    async with upstreams(patient) as up, edge_on(up.bus.url) as http, edge_on(up.bus.url) as another:
        up.primary.script = Held(go)
        await http.post(CHAT, json=asked(), headers=key("unwaited", **ASYNC))
        twin = asyncio.create_task(http.post(CHAT, json=asked(), headers=key("twins")))
        async with asyncio.timeout(SOON_S):
            while len(up.primary.exchanges) < 2:
                await asyncio.sleep(0.01)
        leaving = []
        for pairs in (((http, "twins"), (another, "unwaited")), ((another, "twins"), (http, "unwaited"))):
            await forgotten(up.bus)
            leaving += [asyncio.create_task(each.post(CHAT, json=asked(), headers=key(name))) for each, name in pairs]
            async with asyncio.timeout(SOON_S):
                while await up.bus.bus.count(REQUESTS, "llm.req.*.local") < 2 + len(leaving):
                    await asyncio.sleep(0.01)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        await edges_are_idle(http, another, busy=1)
        assert await up.bus.bus.last(CANCELS, ">") is None
        go.set()
        assert (await twin).status_code == 200
        assert (await until(http, "unwaited", "ok", "cancelled"))["state"] == "ok"


async def forgotten(whole: Inside) -> None:
    """Wait until the broker would store the newest request again."""
    letter = await submitted(whole)
    while whole.bus.now_ms() - letter.timestamp_ms < 200:
        await asyncio.sleep(0.02)


async def edges_are_idle(*edges: httpx.AsyncClient, busy: int) -> None:
    """Wait until they have noticed who has hung up."""
    async with asyncio.timeout(SOON_S):
        while len([task for task in asyncio.all_tasks() if "run_asgi" in repr(task.get_coro())]) > busy:
            await asyncio.sleep(0.01)


async def test_a_finished_stream_is_no_hang_up(two: Edges) -> None:
    whole, http, _ = two
    for stream in (True, False):
        assert (await http.post(CHAT, json=asked(stream=stream, pieces=3))).status_code == 200
    await edges_are_idle(http, busy=0)
    assert await whole.bus.last(CANCELS, f"llm.cancel.{two.client}.*") is None


@asynccontextmanager
async def pinging_often(monkeypatch: pytest.MonkeyPatch, url: str) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(served, "Edge", partial(Edge, ping_s=0.05))
    async with edge_on(url) as http:
        yield http


async def test_comments_say_that_it_lives_while_nothing_comes(two: Edges, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pinging_often(monkeypatch, two.whole.url) as http:
        http.headers["x-llm-client"] = two.client
        stream = (await http.post(CHAT, json=asked(stream=True, delay_ms=300, pieces=2, piece_ms=300))).text
        assert stream.startswith(": ping\n\n")
        assert len(re.findall(r"^: ping$", stream, re.MULTILINE)) >= 4
        assert said(stream) == KOREAN
        late = (await http.post(CHAT, json=asked(stream=True, delay_ms=300, fail="bad_request"))).text
        assert late.startswith(": ping\n\n")
        assert ends_with_an_error(late)["code"] == "bad_request"
        await http.post(CHAT, json=asked(delay_ms=300), headers=key("r1", **ASYNC))
        watched = (await http.get("/v1/requests/r1/events")).text
        assert ": ping\n\n" in watched
        assert events(watched)[-1]["name"] == "reply"


async def test_after_the_first_piece_nothing_is_mended_unseen() -> None:
    async with upstreams(patient) as up, edge_on(up.bus.url) as http:
        up.primary.script = once(cut("fin"))
        response = await http.post(CHAT, json=asked(stream=True), headers=key("r1"))
        error = ends_with_an_error(response.text)
        assert (response.status_code, error["code"], error["llm"]["request_id"]) == (200, "upstream_interrupted", "r1")
        assert "/v1/requests/r1" in error["message"]
        told = await until(http, "r1", "ok")
        assert told["reply"]["message"]["content"] in ("primary", "second")


async def test_before_it_failures_are_mended_and_one_that_is_not_has_its_status() -> None:
    async with upstreams(patient) as up, edge_on(up.bus.url) as http:
        up.primary.script = OOPS
        mended = await http.post(CHAT, json=asked(stream=True))
        assert (said(mended.text), mended.headers["x-llm-model"]) == ("second", "second")
        up.second.script = up.third.script = OOPS
        refused = await http.post(CHAT, json=asked(stream=True))
        assert (refused.status_code, refused.json()["error"]["code"]) == (502, "all_targets_failed")


async def test_buffered_waits_for_a_whole_answer_and_so_survives_what_breaks_off() -> None:
    async with upstreams(patient) as up, edge_on(up.bus.url) as http:
        up.primary.script = cut("rst")
        mended = await http.post(CHAT, json={**asked(stream=True), "buffered": True})
        assert (said(mended.text), mended.headers["x-llm-model"]) == ("second", "second")
        by_header = await http.post(CHAT, json=asked(stream=True), headers={"x-llm-buffered": "true"})
        assert said(by_header.text) == "second"


async def submitted(whole: Inside, client: str = "local") -> Letter:
    """The newest request as it lies on the bus."""
    async with asyncio.timeout(SOON_S):
        while (letter := await whole.bus.last(REQUESTS, f"llm.req.*.{client}")) is None:
            await asyncio.sleep(0.01)
    return letter


async def tell(whole: Inside, asked: Letter, n: int, text: str, attempt: str = "1.1") -> None:
    """What a node would send."""
    client, rid = asked.headers[h.CLIENT], asked.headers[h.REQUEST_ID]
    chunk = Chunk(request_id=rid, attempt_id=attempt, n=n, text=text, model="echo")
    await whole.bus.publish(f"llm.chunk.{client}.{rid}.{n}", chunk.encode())


async def reply(whole: Inside, asked: Letter, text: str) -> None:
    """What a router would write."""
    client, rid, capability = asked.headers[h.CLIENT], asked.headers[h.REQUEST_ID], asked.subject.split(".")[2]
    answer = Reply(
        request_id=rid, client=client, request_hash=request_hash(capability, asked.data), status="ok",
        message=ReplyMessage(content=text), finish_reason="stop", timings=Timings(total_ms=1),
    )  # fmt: skip
    await whole.bus.publish(f"llm.res.{client}.{rid}", answer.encode(), headers=answer.headers())


@pytest.mark.parametrize("missing", [0, 2])
async def test_a_lost_piece_is_told_with_the_end(alone: Edges, missing: int) -> None:
    words = ["하나 ", "둘 ", "셋 ", "넷 "]
    asking = asyncio.create_task(alone.http.post(CHAT, json=asked(stream=True)))
    request = await submitted(alone.whole, alone.client)
    for n, text in enumerate(words):
        if n != missing:
            await tell(alone.whole, request, n, text)
    await reply(alone.whole, request, "".join(words))
    assert said((await soon(asking)).text) == "".join(words)


async def test_pieces_of_another_request_under_the_same_id_are_not_told(alone: Edges) -> None:
    asking = asyncio.create_task(alone.http.post(CHAT, json=asked(stream=True), headers=key("taken")))
    request = await submitted(alone.whole, alone.client)
    await tell(alone.whole, request, 0, "남의 말")
    await reply(alone.whole, request, "제 말")
    assert said((await soon(asking)).text) == "제 말"


async def test_what_is_not_the_beginning_of_the_answer_ends_with_an_error(alone: Edges) -> None:
    asking = asyncio.create_task(alone.http.post(CHAT, json=asked(stream=True)))
    request = await submitted(alone.whole, alone.client)
    await tell(alone.whole, request, 0, "아니 ")
    await reply(alone.whole, request, "네")
    assert ends_with_an_error((await soon(asking)).text)["code"] == "upstream_interrupted"


@pytest.mark.parametrize("begun", [False, True], ids=["before content", "after content"])
async def test_another_attempt_is_gone_over_to_only_before_content(alone: Edges, begun: bool) -> None:
    asking = asyncio.create_task(alone.http.post(CHAT, json=asked(stream=True)))
    request = await submitted(alone.whole, alone.client)
    await tell(alone.whole, request, 0, "하나 " if begun else "")
    await tell(alone.whole, request, 0, "", "2.1")
    await tell(alone.whole, request, 1, "둘", "2.1")
    await reply(alone.whole, request, "둘")
    stream = (await soon(asking)).text
    if begun:
        assert ends_with_an_error(stream)["code"] == "upstream_interrupted"
    else:
        assert said(stream) == "둘"
