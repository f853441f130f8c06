"""The bus with a real engine behind it: nothing here is recorded, and nothing counts but what the engine counted."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from adapters.client import RequestFailedError
from adapters.providers import Backend, Setup, build
from router.errors import AttemptError
from router.ports import Call, Progress, Provider
from schemas import LlmRequest
from schemas.chunk import Chunk
from schemas.failure import FailureKind
from schemas.policy import Dialect
from schemas.request import Chat, Preferences
from subjects import Cancel
from tests.support import tiny_gguf
from tests.support.dialects import every
from tests.support.inside import Inside, inside
from tests.support.llama_server import MODEL, LlamaServer, llama_server
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.upstreams import MODELS, answering

pytestmark = pytest.mark.engine

ASKED = "안녕하세요, 오늘 대기열은 어떤가요? Say it in a few words."
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["좋음", "나쁨"]}, "busy": {"type": "boolean"}},
    "required": ["mood", "busy"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    directory = tmp_path_factory.mktemp("gguf")
    yield {
        "tiny": tiny_gguf.write(directory / "tiny.gguf"),
        "endless": tiny_gguf.write(directory / "endless.gguf", tiny_gguf.ENDLESS),
        "large": tiny_gguf.write(directory / "large.gguf", tiny_gguf.LARGE, hollow=True),
    }
    for path in directory.iterdir():
        path.unlink()


def policy(url: str, second: str) -> str:
    """The engine as `primary`, a scripted upstream behind it."""
    model = {
        "nodes": ["bench"], "context_tokens": 4096, "quality": 0.5, "tokens_per_s": 100, "first_token_ms": 20_000,
        "idle_ms": 10_000, "price": {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0},
    }  # fmt: skip
    backends = {"primary": MODEL, "second": "gpt-x"}
    return yaml.safe_dump(
        {
            "version": 1,
            "nodes": {"bench": {}},
            "providers": {
                "primary": {"dialect": "openai", "url": url + "/v1"},
                "second": {"dialect": "openai", "url": second},
            },
            "models": {name: {**model, "provider": name, "backend": backends[name]} for name in backends},
            "capabilities": {"chat": {"models": ["primary"]}},
            "default": {"models": ["primary"]},
            "fallbacks": {"default": ["second"]},
        }
    )


@dataclass(slots=True)
class Engine:
    server: LlamaServer
    bus: Inside
    second: ScriptedUpstream


@asynccontextmanager
async def engine(model: Path, *, context: int = 4096) -> AsyncIterator[Engine]:
    async with (
        llama_server(model, context=context) as server,
        ScriptedUpstream(answering("대신하는 답"), listed=MODELS) as second,
    ):
        await server.health(200)
        async with inside(policy=policy(server.url, second.url)) as bus:
            yield Engine(server, bus, second)


@asynccontextmanager
async def pieces(bus: Inside, rid: str) -> AsyncIterator[asyncio.Queue[Chunk]]:
    """The pieces of the answer to `rid`, as they are published."""
    heard: asyncio.Queue[Chunk] = asyncio.Queue()
    subject = f"llm.chunk.{bus.client.name}.{rid}.*"
    async with bus.bus.listen(subject, lambda _s, data, _h: heard.put_nowait(Chunk.decode(data))):
        yield heard


def asked(prompt: str = ASKED, max_tokens: int = 60, **more: Any) -> LlmRequest:
    wish = Preferences(max_tokens=max_tokens, temperature=more.pop("temperature", 0), seed=7)
    return LlmRequest(prompt=prompt, preferences=wish, **more)


async def test_pieces_come_one_by_one_and_make_the_whole_reply(weights: dict[str, Path]) -> None:
    async with engine(weights["endless"]) as on, pieces(on.bus, "r1") as heard:
        streamed = await on.bus.client.ask(asked(stream=True), request_id="r1")
        whole = await on.bus.client.ask(asked())
        assert streamed.message is not None
        assert whole.message is not None
        told = [heard.get_nowait() for _ in range(heard.qsize())]
        assert len(told) >= 20
        assert [piece.n for piece in told] == list(range(len(told)))
        assert "".join(piece.text for piece in told) == streamed.message.content == whole.message.content
        for reply in (streamed, whole):
            assert (reply.finish_reason, reply.backend, reply.notice) == ("length", MODEL, None)
            assert reply.usage is not None
            assert reply.usage.tokens_out == 60
            assert not reply.usage.estimated
            assert reply.usage.tokens_in > len(ASKED.encode()) // 2
            assert reply.timings.first_token_ms is not None
        assert streamed.usage is not None
        assert whole.usage is not None
        assert streamed.usage.tokens_in == whole.usage.tokens_in
        assert whole.usage.cached_tokens_in > 0, "the same prompt again is read from the engine's cache"


async def test_an_answer_that_ends_by_itself_is_a_stop(weights: dict[str, Path]) -> None:
    async with engine(weights["tiny"]) as on:
        reply = await on.bus.client.ask(asked(max_tokens=2000, temperature=1))
        assert reply.usage is not None
        assert reply.finish_reason == "stop"
        assert 0 < reply.usage.tokens_out < 2000


async def test_cancelling_closes_the_connection_and_frees_the_slot(weights: dict[str, Path]) -> None:
    async with engine(weights["endless"]) as on, pieces(on.bus, "r1") as heard:
        ask = asyncio.create_task(on.bus.client.ask(asked(max_tokens=3900, stream=True), request_id="r1"))
        await asyncio.wait_for(heard.get(), 20)
        await on.server.busy()
        await on.bus.bus.publish(str(Cancel(on.bus.client.name, "r1")), b"")
        with pytest.raises(RequestFailedError) as cancelled:
            await ask
        assert cancelled.value.error.type == "cancelled"
        await on.server.idle()
        assert on.server.tokens_processed() < 3900, "it stopped for the cancelling, not because it was done"
        assert not on.second.exchanges
        assert (await on.bus.client.ask(asked(max_tokens=5))).finish_reason == "length", "its one slot serves again"


async def test_the_grammar_of_a_schema_is_obeyed(weights: dict[str, Path]) -> None:
    wish = {"type": "json_schema", "json_schema": {"name": "state", "schema": SCHEMA, "strict": True}}
    async with engine(weights["tiny"]) as on:
        # Random words would go on for ever with blanks between the tokens of JSON.
        reply = await on.bus.client.ask(asked(max_tokens=1500, response_format=wish, stream=True))
        assert reply.message is not None
        said = json.loads(reply.message.content)
        assert said.keys() == {"mood", "busy"}
        assert said["mood"] in ("좋음", "나쁨")
        assert isinstance(said["busy"], bool)


async def test_a_prompt_beyond_the_context_is_told_as_such_and_not_called_twice(weights: dict[str, Path]) -> None:
    async with engine(weights["tiny"], context=512) as on:
        with pytest.raises(RequestFailedError) as failed:
            await on.bus.client.ask(asked("긴 글 " * 400))
        assert failed.value.reply is not None
        [attempt] = failed.value.reply.attempts
        assert attempt.failure is not None
        assert (attempt.failure.kind, attempt.failure.status) == (FailureKind.CONTEXT_TOO_LONG, 400)
        assert "context size (512 tokens)" in attempt.failure.message


async def test_an_engine_that_dies_amid_its_answer_is_replaced(weights: dict[str, Path]) -> None:
    async with engine(weights["endless"]) as on, pieces(on.bus, "r1") as heard:
        ask = asyncio.create_task(on.bus.client.ask(asked(max_tokens=3900, stream=True), request_id="r1"))
        await asyncio.wait_for(heard.get(), 20)
        await on.server.kill()
        reply = await ask
        assert reply.message is not None
        assert reply.message.content == "대신하는 답"
        first, second = reply.attempts
        assert first.failure is not None
        assert (first.failure.kind, second.failure) == (FailureKind.INTERRUPTED, None)
        assert len(on.second.exchanges) == 1


async def test_an_engine_that_still_loads_is_asked_again_then_replaced(weights: dict[str, Path]) -> None:
    async with engine(weights["tiny"]) as on:
        await on.server.kill()
        on.server.command[2] = str(weights["large"])
        await on.server.start()
        await on.server.health(503)
        reply = await on.bus.client.ask(asked(max_tokens=3))
        first, *later = reply.attempts
        assert first.failure is not None
        assert (first.failure.kind, first.failure.status) == (FailureKind.SERVER_ERROR, 503)
        assert "Loading model" in first.failure.message
        # Asked again at once it may have loaded by then, or not.
        assert [each.model for each in later] in (["primary"], ["primary", "second"])
        assert later[-1].failure is None


@asynccontextmanager
async def speaking(dialect: str, server: LlamaServer) -> AsyncIterator[Provider]:
    provider = build(cast("Dialect", dialect), Setup(server.url + "/v1", {MODEL: Backend()}))
    try:
        yield provider
    finally:
        await provider.aclose()


@every("openai", "anthropic")
async def test_its_endpoints_speak_the_dialects(weights: dict[str, Path], dialect: str) -> None:
    told: list[str] = []
    turns = [{"role": "system", "content": "짧게"}, {"role": "user", "content": ASKED}]
    chat = Chat.model_validate({"messages": turns, "max_tokens": 20})
    too_long = chat.model_copy(update={"messages": (*chat.messages,) * 60})
    async with llama_server(weights["endless"], context=1024) as server:
        await server.health(200)
        async with speaking(dialect, server) as provider:
            assert await provider.probe() == {MODEL: None}
            answer = await provider.chat(Call(MODEL, chat, 20_000, 10_000), Progress(told.append))
        # It closes its connection after each stream, though it promises to keep it: the next call gets a new one.
        async with speaking(dialect, server) as provider:
            with pytest.raises(AttemptError) as refused:
                await provider.chat(Call(MODEL, too_long, 20_000, 10_000), Progress())
    assert answer.text == "".join(told) != ""
    assert len(told) >= 10
    assert answer.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.tokens_out == 20
    assert refused.value.failure.kind is FailureKind.CONTEXT_TOO_LONG
