"""Streams over real HTTP whose pieces come as no good node sends them: lost, of two attempts, unlike the reply."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from adapters.bus import JetStreamBus
from schemas import Chunk, Reply, ReplyMessage, Timings
from schemas.request import request_hash
from schemas.work import AttemptRecord
from subjects.streams import REQUESTS
from tests.support.edge import edge_on
from tests.support.inside import inside

MESSAGES = [{"role": "user", "content": "항구를 묘사해 줘"}]


@dataclass(frozen=True, slots=True)
class Asked:
    """A stream that was asked for; nobody answers it but the test."""

    bus: JetStreamBus
    request_hash: str
    response: asyncio.Task[httpx.Response]

    async def piece(self, n: int, attempt: str = "1.1", text: str = "") -> None:
        model = f"model-{attempt[0]}" if n == 0 else None
        chunk = Chunk(request_id="r1", attempt_id=attempt, n=n, text=text, model=model)
        await self.bus.publish(f"llm.chunk.local.r1.{n}", chunk.encode())

    async def end(self, attempt: str, text: str) -> list[Any]:
        """All that was said, once there is a reply of that attempt."""
        record = AttemptRecord(attempt_id=attempt, node="bench", model="echo", provider="loopback")
        reply = Reply(
            request_id="r1", client="local", request_hash=self.request_hash, status="ok", model=f"model-{attempt[0]}",
            message=ReplyMessage(content=text), finish_reason="stop", timings=Timings(total_ms=1), attempts=(record,),
        )  # fmt: skip
        await self.bus.publish("llm.res.local.r1", reply.encode(), headers=reply.headers())
        return events(await self.response)


@asynccontextmanager
async def asked() -> AsyncIterator[Asked]:
    body = {"model": "auto", "messages": [{"role": "user", "content": "항구를 묘사해 줘"}], "stream": True}
    async with inside(nodes=False, routers=0) as whole, edge_on(whole.url) as http, asyncio.TaskGroup() as tasks:
        headers = {"idempotency-key": "r1"}
        asking = tasks.create_task(http.post("/v1/chat/completions", json=body, headers=headers))
        async with asyncio.timeout(10):
            while not (stored := [each async for each in whole.bus.read(REQUESTS, "llm.req.chat.>", start_seq=1)]):
                await asyncio.sleep(0.01)
        yield Asked(whole.bus, request_hash("chat", stored[0].data), asking)


def events(response: httpx.Response) -> list[Any]:
    """The data of all events."""
    said = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [each if each == "[DONE]" else json.loads(each) for each in said]


def text(said: list[Any]) -> str:
    return "".join(each["choices"][0]["delta"].get("content", "") for each in said if "choices" in each)


async def test_a_second_attempt_before_any_content_is_the_whole_answer() -> None:
    async with asked() as stream:
        await stream.piece(0)
        await stream.piece(0, "2.1")
        await stream.piece(1, "2.1", "안개 ")
        *said, done = await stream.end("2.1", "안개 낀 항구")
        assert (text(said), done) == ("안개 낀 항구", "[DONE]")
        headers = (await stream.response).headers
        assert {each["model"] for each in said} == {"model-2"} == {headers["x-llm-model"]}
        assert headers["x-llm-attempts"] == "2"


async def test_after_content_no_other_attempt_goes_on_silently() -> None:
    async with asked() as stream:
        await stream.piece(0, text="안개 ")
        await stream.piece(0, "2.1")
        *said, error = events(await stream.response)
        assert text(said) == "안개 "
        assert error["error"]["llm"]["type"] == "upstream_interrupted"
        assert all(each["choices"][0]["finish_reason"] is None for each in said)


@pytest.mark.parametrize(("attempt", "answer"), [("2.1", "안개 낀 항구"), ("1.1", "맑은 항구")])
async def test_an_answer_that_does_not_continue_what_was_said_is_an_error(attempt: str, answer: str) -> None:
    async with asked() as stream:
        await stream.piece(0, text="안개 ")
        *said, error = await stream.end(attempt, answer)
        assert (text(said), error["error"]["code"]) == ("안개 ", "upstream_interrupted")


async def test_a_piece_lost_in_the_middle_is_not_passed_over_in_silence() -> None:
    async with asked() as stream:
        await stream.piece(0, text="안개 ")
        await stream.piece(2, text="구")
        *said, error = await stream.end("1.1", "안개 낀 항구")
        assert (text(said), error["error"]["code"]) == ("안개 구", "upstream_interrupted")


async def test_last_pieces_that_were_lost_are_in_the_end() -> None:
    async with asked() as stream:
        await stream.piece(0, text="안개 ")
        *said, done = await stream.end("1.1", "안개 낀 항구")
        assert (text(said), done) == ("안개 낀 항구", "[DONE]")
