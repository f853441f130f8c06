"""Streams that fail and start over, and a hundred at once: every piece in order, none of another's."""

import asyncio
from collections import defaultdict

from schemas import Chunk, LlmRequest
from subjects import Chunk as ChunkSubject
from subjects import parse
from subjects.streams import CHUNKS
from tests.support.faults import CHUNKED, PROMPT, TOKENS, Held, ask, begin, cut, nothing_left
from tests.support.openai_speech import DONE, FINISH, USAGE, event
from tests.support.scripted_upstream import Exchange
from tests.support.upstreams import patient, upstreams


async def test_a_new_attempt_is_announced_before_its_first_token() -> None:
    go = asyncio.Event()
    heard: asyncio.Queue[Chunk] = asyncio.Queue()

    def note(_subject: str, data: bytes, _headers: object) -> None:
        heard.put_nowait(Chunk.decode(data))

    async def thinking(exchange: Exchange) -> None:
        await go.wait()
        await begin(exchange, 3)
        await exchange.chunk(FINISH + event(usage=USAGE) + DONE)
        await exchange.chunk(b"")

    async with upstreams(patient) as up:
        up.primary.script, up.second.script = cut("fin"), thinking
        async with up.bus.bus.listen(
            "llm.chunk.tester.r1.*", lambda _s, data, _h: heard.put_nowait(Chunk.decode(data))
        ):
            asking = asyncio.create_task(up.bus.client.ask(LlmRequest(prompt=PROMPT, stream=True), request_id="r1"))
            async with asyncio.timeout(5):
                first = [await heard.get() for _ in range(40)]
                announced = await heard.get()
            assert [(c.attempt_id, c.n, c.text) for c in first] == [("1.1", n, TOKENS[n]) for n in range(40)]
            assert (announced.attempt_id, announced.n, announced.text) == ("2.1", 0, "")
            assert not asking.done()
            go.set()
            async with asyncio.timeout(5):
                rest = [await heard.get() for _ in range(3)]
                reply = await asking
            assert [(c.attempt_id, c.n, c.text) for c in rest] == [("2.1", n + 1, TOKENS[n]) for n in range(3)]
            assert reply.message is not None
            assert reply.message.content == "".join(TOKENS[:3])


async def test_who_comes_late_or_leaves_reads_the_pieces_from_the_stream() -> None:
    go = asyncio.Event()
    async with upstreams(patient) as up:
        up.primary.script = Held(go, tokens=5)
        asking = asyncio.create_task(up.bus.client.ask(LlmRequest(prompt=PROMPT, stream=True), request_id="r1"))
        async with asyncio.timeout(5):
            while await up.bus.bus.last(CHUNKS, "llm.chunk.tester.r1.4") is None:
                await asyncio.sleep(0.01)
        go.set()
        await asking
        late = [Chunk.decode(letter.data) async for letter in up.bus.bus.read(CHUNKS, "llm.chunk.tester.r1.*")]
        assert [(c.n, c.text) for c in late] == list(enumerate(TOKENS[:5]))


async def test_a_hundred_streams_at_once_are_whole_and_in_order() -> None:
    async def fifty(exchange: Exchange) -> None:
        name = exchange.json()["messages"][-1]["content"]
        await exchange.head(200, CHUNKED)
        for n in range(50):
            await exchange.chunk(event({"content": f"{name}-{n} "}))
            await asyncio.sleep(0)
        await exchange.chunk(FINISH + event(usage=USAGE) + DONE)
        await exchange.chunk(b"")

    pieces: dict[str, list[Chunk]] = defaultdict(list)
    whole = asyncio.Event()

    def note(subject: str, data: bytes, _headers: object) -> None:
        address = parse(subject)
        if isinstance(address, ChunkSubject):
            pieces[address.rid].append(Chunk.decode(data))
        else:
            whole.set()

    async with upstreams(patient) as up, up.bus.bus.listen("llm.chunk.>", note):
        up.primary.script = fifty
        replies = await asyncio.gather(
            *(up.bus.client.ask(LlmRequest(prompt=f"질문{n}", stream=True), request_id=f"r{n}") for n in range(100))
        )
        await up.bus.bus.tell("llm.chunk.mark", b"")  # it comes behind all that was sent
        async with asyncio.timeout(5):
            await whole.wait()
        assert up.calls == (100, 0, 0)
        for n, reply in enumerate(replies):
            heard = pieces[f"r{n}"]
            assert [(c.attempt_id, c.n, c.text) for c in heard] == [("1.1", k, f"질문{n}-{k} ") for k in range(50)]
            assert reply.message is not None
            assert reply.message.content == "".join(c.text for c in heard)
        await nothing_left(up)


async def test_an_answer_that_is_told_twice_over_has_its_last_attempt_only_in_the_reply() -> None:
    async with upstreams() as up:
        up.primary.script, up.second.script = cut("fin"), cut("rst")
        reply = await ask(up, stream=True)
        assert reply.message is not None
        assert (reply.message.content, reply.model, up.calls) == ("third", "third", (1, 1, 1))
