"""Streams on the command line: printed as they come, watched, left and gone on with, cancelled."""

import asyncio
import json
import shlex
import signal
from collections.abc import Iterator

import pytest

from adapters.bus import open_bus
from adapters.client import Client
from router.ports import Letter
from schemas import LlmRequest
from schemas import headers as h
from subjects.streams import CANCELS, REQUESTS
from tests.support.command import (
    NODES,
    PATIENCE_S,
    UP,
    answer,
    line,
    llmbus,
    ready,
    refusal,
    running,
)
from tests.support.nats_server import OwnBroker


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A whole llmbus, shared by the tests that leave it well."""
    store = tmp_path_factory.mktemp("store")
    with running(*UP, "--store", str(store), "--json") as up:
        started = ready(up)
        assert started["nodes"].keys() == NODES
        assert all(model["stand_in"] for models in started["nodes"].values() for model in models.values())
        yield started["url"]


def test_a_streamed_answer_is_whole(url: str) -> None:
    assert llmbus("ask", "Stream this", "--stream", url=url).stdout.endswith("] Stream this\n")


def slow(url: str, agent: str, rid: str) -> None:
    """Submit what will be answered in pieces over some seconds."""

    async def submit() -> None:
        told = {"loopback": {"text": "하나 둘 셋 넷 다섯", "pieces": 11, "piece_ms": 200}}
        async with Client.connect(url, agent) as client:
            await client.submit(LlmRequest(prompt="x", stream=True, metadata=told), capability="code", request_id=rid)

    asyncio.run(submit())


async def made(url: str) -> None:
    """The streams are there, and nobody who answers."""
    async with open_bus(url, name="set-up", make=True):
        pass


def cancellation_of(url: str, subject: str) -> bool:
    """Whether one is stored."""

    async def look() -> bool:
        async with open_bus(url, name="looking") as bus:
            return await bus.last(CANCELS, subject) is not None

    return asyncio.run(look())


def test_a_stream_as_json_is_a_line_for_each_piece_and_one_for_the_reply(url: str) -> None:
    *pieces, reply = map(json.loads, llmbus("ask", "Stream this", "--stream", "--json", url=url).stdout.splitlines())
    assert "".join(piece["text"] for piece in pieces) == reply["message"]["content"]
    refused = llmbus("ask", "x", "--stream", "--json", "--model", "nope", url=url)
    assert (refused.returncode, json.loads(refused.stdout)["error"]["type"]) == (1, "no_route")


def test_a_stream_is_watched_left_and_gone_on_with_from_another_terminal(url: str) -> None:
    slow(url, "npc-ai", "watched")
    with running("watch", "watched", "--json", url=url) as first:
        seen = [json.loads(line(first.stdout)) for _ in range(3)]
        first.send_signal(signal.SIGINT)
        assert first.wait(PATIENCE_S) == 130
        assert first.stderr is not None
        left = first.stderr.read().decode()
        assert "not cancelled" in left
        on = shlex.split(left.partition("`llmbus ")[2].partition("`")[0])
    last = seen[-1]
    assert on[:4] == ["watch", "npc-ai/watched", "--attempt", last["attempt_id"]]
    *rest, reply = map(json.loads, llmbus(*on[:-1], str(last["n"]), "--json", url=url).stdout.splitlines())
    assert [piece["n"] for piece in seen + rest] == list(range(11))
    assert "".join(piece["text"] for piece in seen + rest) == reply["message"]["content"] == "하나 둘 셋 넷 다섯"
    assert llmbus("watch", "npc-ai/watched", url=url).stdout == "하나 둘 셋 넷 다섯\n"
    assert llmbus("watch", "watched", "--attempt", "1.1", "--after", "8", url=url).stdout == "다섯\n"
    assert not cancellation_of(url, "llm.cancel.npc-ai.watched")
    assert "is the id right" in refusal("watch", "unheard-of", "--wait", "0.2", url=url)
    assert "--attempt" in refusal("watch", "watched", "--after", "3", url=url)
    assert "look like 2.1" in refusal("watch", "watched", "--attempt", "first", url=url)


@pytest.mark.parametrize("options", [(), ("--stream",)])
def test_ctrl_c_cancels_what_was_asked_and_says_so(broker: OwnBroker, options: tuple[str, ...]) -> None:
    async def stored(stream: str, subject: str) -> Letter:
        async with open_bus(broker.url, name="looking") as bus, asyncio.timeout(PATIENCE_S):
            while (letter := await bus.last(stream, subject)) is None:
                await asyncio.sleep(0.02)
        return letter

    asyncio.run(made(broker.url))
    with running("ask", "기다려", *options, "--agent", "hasty", url=broker.url) as ask:
        rid = asyncio.run(stored(REQUESTS, ">")).headers[h.REQUEST_ID]
        ask.send_signal(signal.SIGINT)
        assert ask.wait(PATIENCE_S) == 130
        assert ask.stderr is not None
        assert f"cancelled; `llmbus result hasty/{rid}`" in ask.stderr.read().decode()
    asyncio.run(stored(CANCELS, f"llm.cancel.hasty.{rid}"))


def test_cancel_says_what_came_of_it(url: str) -> None:
    slow(url, "npc-ai", "stopped")
    ran = llmbus("cancel", "stopped", "--json", url=url)
    told = json.loads(ran.stdout)
    assert (told["client"], told["request_id"]) == ("npc-ai", "stopped")
    assert (ran.returncode, told["cancelled"], told["status"]) == (0, True, "cancelled")
    assert cancellation_of(url, "llm.cancel.npc-ai.stopped")
    done = answer("ask", "Done", "--agent", "npc-ai", url=url)["request_id"]
    assert "the answer had won" in refusal("cancel", f"npc-ai/{done}", url=url)
    refused = answer("ask", "x", "--model", "nope", url=url, code=1)["request_id"]
    assert "it had ended as no_route" in refusal("cancel", f"cli/{refused}", url=url)
    assert "is the id right" in refusal("cancel", "unheard-of", "--wait", "0.2", url=url)
    assert "RID or CLIENT/RID" in refusal("cancel", "a.b", url=url)
