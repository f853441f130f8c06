"""Faults of a connection, on a real broker: what is on the way is neither lost, doubled nor heaped up."""

import asyncio
from uuid import uuid4

import nats
import pytest
from nats.aio.msg import Msg

from adapters.bus import open_bus, publish
from router.errors import UnknownError


@pytest.mark.parametrize("answer", [b"", b"hello", b"[]", b"{}", b'{"error": "x"}', b'{"stream": "LLM_DEAD"}'])
async def test_what_another_listener_answers_is_no_acknowledgement(
    nats_url: str, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(publish, "ACK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(publish, "GIVE_UP_S", 0.3)
    subject = f"test.{uuid4().hex}"
    async with open_bus(nats_url, name="test", make=True) as bus, await nats.connect(nats_url) as other:

        async def respond(msg: Msg) -> None:
            await other.publish(msg.reply, answer)

        await other.subscribe(subject, cb=respond)
        for _ in range(2):
            await other.flush()
        with pytest.raises(UnknownError):
            async with asyncio.timeout(10):
                await bus.publish(subject, b"x", msg_id="id-1")
