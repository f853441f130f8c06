"""OpenAI's chat completions through the edge: whole, streamed, and refused, over real HTTP."""

import json

from tests.support.edge import edge_on
from tests.support.inside import inside

ASKED = {"model": "auto", "messages": [{"role": "user", "content": "항구를 묘사해 줘"}]}


async def test_a_chat_is_answered_with_the_facts_in_its_headers() -> None:
    async with inside() as whole, edge_on(whole.url) as http:
        response = await http.post("/v1/chat/completions", json=ASKED)
        assert response.status_code == 200
        body = response.json()
        assert "항구를 묘사해 줘" in body["choices"][0]["message"]["content"]
        facts = response.headers
        assert facts["x-llm-model"] == body["model"] == "echo"
        assert facts["x-llm-cost-usd"] == "0.000023"
        assert body["id"] == f"chatcmpl-{facts['x-llm-request-id']}"


async def test_a_stream_says_the_same_in_pieces_and_ends_with_done() -> None:
    told = {**ASKED, "stream": True, "metadata": {"loopback": {"text": "안개 낀 항구", "pieces": 7}}}
    async with inside() as whole, edge_on(whole.url) as http:
        response = await http.post("/v1/chat/completions", json=told)
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
        assert len(deltas) == 8
        assert "".join(deltas) == "안개 낀 항구"


async def test_a_refusal_has_its_status_and_the_dialects_shape() -> None:
    async with inside() as whole, edge_on(whole.url) as http:
        response = await http.post("/v1/chat/completions", json={**ASKED, "model": "nobody"})
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["code"] == "model_not_found"
        assert error["llm"]["request_id"] == response.headers["x-llm-request-id"]
