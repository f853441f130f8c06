"""OpenAI's list of models at the edge: what a request may call a model, by the policy in force."""

import asyncio

import openai
import pytest

from tests.support.edge import edge_on
from tests.support.edge_openai import openai_on
from tests.support.inside import inside


async def test_all_that_can_be_asked_for_is_listed_with_what_it_is() -> None:
    async with inside(nodes=False, routers=0) as whole, openai_on(whole.url) as client:
        listed = {model.id: model async for model in client.models.list()}
        kinds = {name: (model.model_extra or {})["kind"] for name, model in listed.items()}
        assert kinds == {
            "auto": "auto", "chat": "capability", "code": "capability", "echo": "model", "spare": "model",
            "fast": "alias",
        }  # fmt: skip
        assert listed["echo"].owned_by == "loopback"
        assert listed["spare"].model_extra == {
            "kind": "model", "provider": "loopback", "backend": "spare", "nodes": ["bench"], "role": None,
            "context_tokens": 200_000, "tools": True, "embeds": False, "free": False,
            "price": {"input_usd_per_mtok": "3", "output_usd_per_mtok": "6"},
        }  # fmt: skip
        assert listed["fast"].model_extra == {
            "kind": "alias", "models": ["echo"], "embeds": False, "strategy": "speed", "context_tokens": 100_000
        }  # fmt: skip
        assert await client.models.retrieve("fast") == listed["fast"]
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("아무도/아님")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_a_model_is_found_by_its_providers_own_name_too() -> None:
    def renamed(policy: str) -> str:
        return policy.replace("backend: spare", "backend: 'qwen/qwen3:14b'")

    async with inside(nodes=False, routers=0) as whole:
        await whole.apply(renamed)
        async with openai_on(whole.url) as client:
            assert (await client.models.retrieve("qwen/qwen3:14b")).id == "spare"


async def test_the_list_follows_the_policy_in_force() -> None:
    async with inside(nodes=False, routers=0) as whole, edge_on(whole.url) as http:
        assert (await http.get("/v1/models/quick")).status_code == 404
        await whole.apply(lambda policy: policy.replace("fast:", "quick:"))
        async with asyncio.timeout(10):
            while (await http.get("/v1/models/quick")).status_code != 200:
                await asyncio.sleep(0.02)
        assert (await http.get("/v1/models/fast")).status_code == 404
