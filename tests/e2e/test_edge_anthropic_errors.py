"""What goes wrong, as Anthropic's clients are told it: in their own errors, and in an upstream's words."""

import json
from typing import Any

import anthropic
import pytest

from tests.e2e.test_edge_anthropic import ASKED, client, speaking_anthropic
from tests.support.anthropic_speech import PIECES, amid, error
from tests.support.edge import edge_on
from tests.support.faults import cut
from tests.support.inside import inside
from tests.support.openai_speech import refusing, streaming
from tests.support.upstreams import alone, upstreams

PLAIN: Any = {"model": "auto", "max_tokens": 99, "messages": ASKED}
TOO_LONG = "prompt is too long: 210000 tokens > 200000 maximum"


async def test_an_upstream_of_the_dialect_refuses_in_its_own_words() -> None:
    refusals: list[tuple[int, dict[str, Any], type[anthropic.APIStatusError]]] = [
        (400, error("invalid_request_error", TOO_LONG), anthropic.BadRequestError),
        (400, error("invalid_request_error", "잘못된 요청: " + "가" * 3_000), anthropic.BadRequestError),
        (413, error("request_too_large", "Request exceeds the maximum size"), anthropic.RequestTooLargeError),
        (429, error("rate_limit_error", "slow down"), anthropic.RateLimitError),
    ]
    async with upstreams(speaking_anthropic) as up, edge_on(up.bus.url) as http, client(http.base_url) as sdk:
        for status, body, expected in refusals:
            said = json.dumps(body, ensure_ascii=False).encode()
            up.primary.script = refusing(status, said, Retry_After="3600")
            for stream in (False, True):
                with pytest.raises(expected) as caught:
                    await sdk.messages.create(**PLAIN, stream=stream)
                assert (caught.value.status_code, caught.value.response.content) == (status, said)
                assert caught.value.response.headers["retry-after"] == "3600"
                assert caught.value.request_id


async def test_a_refusal_longer_than_is_kept_is_told_in_ours_with_its_beginning() -> None:
    said = error("invalid_request_error", "tools.0: " + "x" * 20_000)
    async with upstreams(speaking_anthropic) as up, edge_on(up.bus.url) as http, client(http.base_url) as sdk:
        up.primary.script = refusing(400, said)
        with pytest.raises(anthropic.BadRequestError, match=r"tools\.0: xxx") as caught:
            await sdk.messages.create(**PLAIN)
        assert caught.value.response.json()["error"]["llm"]["type"] == "bad_request"


async def test_a_refusal_of_our_key_is_none_of_the_callers() -> None:
    async with upstreams(speaking_anthropic) as up, edge_on(up.bus.url) as http, client(http.base_url) as sdk:
        up.primary.script = refusing(401, error("authentication_error", "invalid x-api-key"))
        with pytest.raises(anthropic.InternalServerError) as caught:
            await sdk.messages.create(**PLAIN)
        assert caught.value.status_code == 502
        assert caught.value.response.json()["error"]["llm"]["type"] == "upstream_error"


async def test_a_context_too_long_for_another_dialect_is_told_in_anthropics_words() -> None:
    said = {"error": {"message": "maximum context length is 8192 tokens", "code": "context_length_exceeded"}}
    async with upstreams(alone) as up, edge_on(up.bus.url) as http, client(http.base_url) as sdk:
        up.primary.script = refusing(400, said)
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: .*8192 tokens") as caught:
            await sdk.messages.create(**PLAIN)
        with pytest.raises(anthropic.BadRequestError, match="input length and `max_tokens` exceed context limit: "):
            await sdk.messages.create(**{**PLAIN, "max_tokens": 900_000}, stream=True)
        assert caught.value.response.json()["error"]["type"] == "invalid_request_error"


async def test_what_is_wrong_with_a_request_is_said_by_name() -> None:
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    wrong: list[tuple[dict[str, Any], type[anthropic.APIStatusError], str]] = [
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, anthropic.BadRequestError, "empty prompt"),
        ({"messages": [{"role": "robot", "content": "안녕"}]}, anthropic.BadRequestError, "role"),
        ({"tools": [search]}, anthropic.BadRequestError, "web_search_20250305"),
        ({"thinking": {"type": "enabled"}}, anthropic.BadRequestError, "budget_tokens"),
        ({"model": "nobody"}, anthropic.NotFoundError, "nobody"),
        ({"messages": [{"role": "user", "content": "가" * 700_000}]}, anthropic.RequestTooLargeError, "bytes"),
    ]
    async with inside(nodes=False) as bus, edge_on(bus.url) as http, client(http.base_url) as sdk:
        for change, expected, words in wrong:
            with pytest.raises(expected, match=words) as caught:
                await sdk.messages.create(**{**PLAIN, **change})
            told = caught.value.response.json()
            assert (told["type"], told["request_id"]) == ("error", caught.value.request_id)
            assert caught.value.response.headers["x-should-retry"] == "false"
        broken = await http.post("/v1/messages", content=b'{"messages": ')
        assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")


async def whole(sdk: anthropic.AsyncAnthropic) -> anthropic.types.Message:
    async with sdk.messages.stream(**PLAIN) as stream:
        return await stream.get_final_message()


async def test_a_stream_that_breaks_off_ends_in_an_error_and_in_no_stop() -> None:
    for change, script in ((alone, cut("fin")), (speaking_anthropic, streaming(PIECES + amid("overloaded_error")))):
        async with upstreams(change) as up, edge_on(up.bus.url) as http, client(http.base_url) as sdk:
            up.primary.script = script
            with pytest.raises(anthropic.APIStatusError) as caught:
                await whole(sdk)
            assert isinstance(caught.value.body, dict)
            assert caught.value.body["type"] == "error"
            sent = (await http.post("/v1/messages", json={**PLAIN, "stream": True})).text
            assert "event: message_stop" not in sent
            assert '"type":"error"' in sent
