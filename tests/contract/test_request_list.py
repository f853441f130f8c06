"""The list of a client's requests is read backwards from a stream that is read forwards, and little of it."""

import asyncio

from adapters.request_states import newest
from schemas import LlmRequest
from subjects.streams import REQUESTS
from tests.support.inside import inside


async def test_a_page_of_a_long_list_reads_little() -> None:
    async with inside(nodes=False, routers=0) as whole:
        body = LlmRequest(prompt="안개 낀 항구 마을에 종소리가 울린다.").encode()
        for start in range(0, 3000, 500):
            numbers = range(start, start + 500)
            subjects = (f"llm.req.chat.{'rare' if n % 100 == 7 else 'busy'}" for n in numbers)
            await asyncio.gather(*(whole.bus.publish(subject, body) for subject in subjects))
        assert await whole.bus.count(REQUESTS, "llm.req.chat.rare") == 30
        for client, limit, before in (("rare", 5, None), ("busy", 20, None), ("rare", 100, 2000), ("busy", 50, 50)):
            read = whole.bus.client.stats["in_msgs"]
            found, older = await newest(whole.bus, client, limit, before)
            assert whole.bus.client.stats["in_msgs"] - read < 4 * limit + 60
            whole_list = [
                letter.seq async for letter in whole.bus.read(REQUESTS, f"llm.req.chat.{client}")
                if before is None or letter.seq < before
            ]  # fmt: skip
            assert [letter.seq for letter in found] == whole_list[::-1][:limit]
            assert older == (len(whole_list) > limit)
