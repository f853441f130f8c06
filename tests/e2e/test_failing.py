"""How it fails: whatever is sent, a typed error that names the request comes back, and nothing else is disturbed."""

import asyncio
import json

import pytest

from adapters.client import Client, RequestFailedError
from ops.policy_store import PolicyStore
from router.ports import Delivery, Letter, later
from router.reporting import Reporter
from schemas import LlmRequest, Reply
from schemas import headers as h
from schemas.decision import Decided
from schemas.work import WorkItem
from subjects import Reply as ReplySubject
from subjects.streams import DEAD, EVENTS, POLICY_BUCKET, REPLIES, REQUESTS, WORK, work_consumer
from tests.support.inside import POLICY, Inside, inside

MALFORMED = {
    "broken JSON": b'{"prompt": "x"',
    "wrong type": b'{"prompt": 5}',
    "wrong type within": b'{"prompt": "x", "preferences": {"temperature": "hot"}}',
    "a list": b"[1, 2, 3]",
    "empty": b"",
    "only blanks": b"   \n ",
    "empty prompt": b'{"prompt": "   "}',
    "no prompt": b'{"task": "code"}',
    "NUL": b'{"prompt": "a\\u0000b"}',
    "NUL in text": b"a\x00b",
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "invalid UTF-8": b"\xff\xfe\xfa",
    "UTF-16": "안녕".encode("utf-16"),
    "100,000 deep": b'{"prompt": "x", "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "deep list": b'{"prompt": "x", "extra": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100 deep": b'{"prompt": "x", "metadata": ' + b'{"a":' * 100 + b"1" + b"}" * 101,
    "NaN": b'{"prompt": "x", "preferences": {"temperature": NaN}}',
    "too far a deadline": b'{"prompt": "x", "deadline_ms": 99999999}',
    "unknown urgency": b'{"prompt": "x", "urgency": "now!"}',
}


async def publish(whole: Inside, body: bytes, rid: str, **headers: str) -> int:
    """A request as a plain NATS client would send it; its sequence."""
    own = {h.REQUEST_ID: rid, h.CLIENT: whole.client.name, **headers}
    return (await whole.bus.publish("llm.req.code", body, headers=own)).seq


async def reply_to(whole: Inside, rid: str) -> Reply:
    reply = await whole.client.result(rid, timeout_s=10)
    assert reply is not None, f"no reply to {rid}"
    return reply


async def stored(whole: Inside, stream: str, subject: str) -> Letter:
    """What lies in a stream; live listeners hear a reply a moment before it is there."""
    async with asyncio.timeout(5):
        while (letter := await whole.bus.last(stream, subject)) is None:
            await asyncio.sleep(0.01)
    return letter


async def dead_letters(whole: Inside) -> list[str]:
    return [letter.subject async for letter in whole.bus.read(DEAD)]


async def test_malformed_requests_get_a_typed_error_and_disturb_nobody() -> None:
    async with inside() as whole:
        for n, body in enumerate(MALFORMED.values()):
            await publish(whole, body, f"bad{n}")
        good = await whole.client.ask("fine", capability="code")
        assert good.status == "ok"
        for n, what in enumerate(MALFORMED):
            reply = await reply_to(whole, f"bad{n}")
            assert reply.error is not None, what
            assert (reply.error.type, reply.error.request_id, reply.error.spent) == ("bad_request", f"bad{n}", "no")
            assert reply.error.message, what
            assert reply.timings.total_ms < 5_000, what
        buried = await dead_letters(whole)
        assert set(buried) == {"llm.dead.unreadable"}
        assert len(buried) >= 6


async def test_a_payload_over_the_limit_is_refused_and_the_link_stays_up() -> None:
    async with inside() as whole:
        await publish(whole, b"x" * 3_000_000, "large")
        reply = await reply_to(whole, "large")
        assert reply.error is not None
        assert reply.error.type == "payload_too_large"
        with pytest.raises(RequestFailedError) as refused:
            await whole.client.ask("x" * 10_000_000, capability="code", request_id="huge")
        assert (refused.value.error.type, refused.value.error.request_id) == ("payload_too_large", "huge")
        assert (await whole.client.ask("still here", capability="code")).status == "ok"


@pytest.mark.parametrize("rid", ["a.b", "*", ">", "a b", "ü", "x" * 65, "$JS.API", "../etc"])
async def test_an_id_that_is_no_token_never_reaches_a_subject(rid: str) -> None:
    async with inside() as whole:
        body = json.dumps({"prompt": "x", "request_id": rid}).encode()
        seq = (await whole.bus.publish("llm.req.code", body, headers={h.CLIENT: "tester"})).seq
        reply = await reply_to(whole, f"seq-{seq}")
        assert reply.error is not None
        assert (reply.error.type, reply.error.request_id) == ("bad_request", f"seq-{seq}")


async def test_a_request_without_any_name_is_answered_under_its_sequence() -> None:
    async with inside(client="anonymous") as whole:
        seq = (await whole.bus.publish("llm.req.code", "그냥 글".encode())).seq
        assert (await reply_to(whole, f"seq-{seq}")).status == "ok"


async def test_what_nobody_knows_is_no_route() -> None:
    async with inside() as whole:
        for capability, request in (("nope", LlmRequest(prompt="x")), ("code", LlmRequest(prompt="x", model="../gpt"))):
            with pytest.raises(RequestFailedError) as failed:
                await whole.client.ask(request, capability=capability)
            assert failed.value.error.type == "no_route"
            assert "known are" in failed.value.error.message


@pytest.mark.parametrize("deadline_ms", [0, -5])
async def test_an_expired_deadline_calls_nobody(deadline_ms: int) -> None:
    async with inside() as whole:
        with pytest.raises(RequestFailedError) as failed:
            await whole.client.ask(LlmRequest(prompt="x", deadline_ms=deadline_ms), capability="code", request_id="r1")
        assert failed.value.error.type == "deadline_exceeded"
        assert await whole.bus.last(EVENTS, "llm.evt.tester.r1.attempt_started") is None


async def test_the_same_request_again_gets_the_stored_reply_and_runs_nothing() -> None:
    async with inside() as whole:
        body = LlmRequest(prompt="twice").encode()
        await publish(whole, body, "r1")
        first = await reply_to(whole, "r1")
        heard: list[bytes] = []
        async with whole.bus.listen("llm.res.tester.r1", lambda _s, data, _h: heard.append(data)):
            # No message id, so the broker lets the double through: the router must know it.
            await publish(whole, body, "r1")
            async with asyncio.timeout(5):
                while not heard:
                    await asyncio.sleep(0.01)
        assert Reply.decode(heard[0]) == first
        assert len([e async for e in whole.bus.read(EVENTS, "llm.evt.tester.r1.attempt_started")]) == 1
        assert len([r async for r in whole.bus.read(REPLIES)]) == 1


async def test_the_same_id_with_another_body_is_a_conflict() -> None:
    slow = LlmRequest(prompt="first", metadata={"loopback": {"delay_ms": 300}})
    async with inside() as whole:
        first = asyncio.create_task(whole.client.ask(slow, capability="code", request_id="r1"))
        async with asyncio.timeout(5):
            while await whole.bus.last(EVENTS, "llm.evt.tester.r1.decided") is None:
                await asyncio.sleep(0.01)
        with pytest.raises(RequestFailedError) as conflict:
            await whole.client.ask("second", capability="code", request_id="r1")
        assert conflict.value.error.type == "idempotency_conflict"
        reply = await first
        assert reply.message is not None
        assert "first" in reply.message.content, "the first request is not disturbed"
        letter = await stored(whole, REPLIES, "llm.res.tester.r1")
        assert Reply.decode(letter.data) == reply
        replies = [Reply.decode(letter.data) async for letter in whole.bus.read(REPLIES)]
        assert sorted(r.error.type if r.error else "ok" for r in replies) == ["idempotency_conflict", "ok"]


async def test_the_same_id_of_another_client_is_another_request() -> None:
    async with inside() as whole, Client.connect(whole.url, "rival") as rival:
        mine, theirs = await asyncio.gather(
            whole.client.ask("mine", capability="code", request_id="r1"),
            rival.ask("theirs", capability="code", request_id="r1"),
        )
        assert mine.message is not None
        assert theirs.message is not None
        assert ("mine" in mine.message.content, "theirs" in theirs.message.content) == (True, True)


async def test_a_request_waits_for_its_node_to_come_up() -> None:
    async with inside(nodes=False) as whole:
        asks = [asyncio.create_task(whole.client.ask(f"early {n}", capability="code")) for n in range(20)]
        async with asyncio.timeout(5):
            while not [letter async for letter in whole.bus.read(WORK, "llm.work.router.>")]:
                await asyncio.sleep(0.01)
        await whole.start_node()
        replies = await asyncio.gather(*asks)
        assert {reply.status for reply in replies} == {"ok"}


async def test_a_router_that_comes_late_does_not_refuse_what_the_nodes_may_still_take() -> None:
    async with inside(nodes=False, routers=0, policy=POLICY + "limits: {node_wait_ms: 1500}\n") as whole:
        ticket = await whole.client.submit("아직 거기 있나요?", capability="code", request_id="r1")
        letter = await whole.bus.last(REQUESTS, "llm.req.code")
        assert letter is not None
        async with asyncio.timeout(5):
            while whole.bus.now_ms() < letter.timestamp_ms + 1_600:
                await asyncio.sleep(0.05)
            await whole.start_router()
            while not await whole.bus.count(WORK, "llm.work.router.>"):
                await asyncio.sleep(0)
            await whole.start_node()
        assert (await whole.client.result_of(ticket)).status == "ok"


async def test_a_node_that_never_comes_is_told_in_time() -> None:
    impatient = POLICY + "limits: {node_wait_ms: 600}\n"
    async with inside(nodes=False, policy=impatient) as whole:
        with pytest.raises(RequestFailedError) as failed:
            await whole.client.ask("anybody?", capability="code")
        assert (failed.value.error.type, failed.value.error.retryable) == ("overloaded", True)
        assert "node_unknown" in failed.value.error.message


async def test_work_whose_node_died_is_answered_at_its_deadline() -> None:
    async with inside() as whole:
        # A node that is heard and never takes anything: its heartbeat stands, its work stays.
        await whole.heard("bench")
        beat = await whole.bus.last("KV_llm_nodes", "$KV.llm_nodes.bench")
        assert beat is not None
        ghost = POLICY.replace("nodes:\n  bench: {}", "nodes:\n  bench: {}\n  ghost: {}").replace(
            "nodes: [bench]\n    provider: loopback\n    backend: echo",
            "nodes: [ghost]\n    provider: loopback\n    backend: echo",
        )
        revision = await whole.apply(lambda _: ghost)
        await in_force(whole, revision)
        await whole.bus.tell("$KV.llm_nodes.ghost", beat.data.replace(b'"node":"bench"', b'"node":"ghost"'))
        await whole.heard("ghost")
        with pytest.raises(RequestFailedError) as failed:
            await whole.client.ask(LlmRequest(prompt="into the void", deadline_ms=800), capability="code")
        assert failed.value.error.type == "deadline_exceeded"
        assert failed.value.reply is not None
        assert failed.value.reply.timings.total_ms < 800 + 5_000
        async with asyncio.timeout(5):
            while [letter async for letter in whole.bus.read(WORK)]:
                await asyncio.sleep(0.01)


async def test_a_slow_model_is_stopped_at_the_deadline() -> None:
    slow = LlmRequest(prompt="x", deadline_ms=300, metadata={"loopback": {"delay_ms": 60_000}})
    async with inside() as whole:
        with pytest.raises(RequestFailedError) as failed:
            await whole.client.ask(slow, capability="code")
        assert failed.value.error.type == "deadline_exceeded"
        assert failed.value.error.spent == "unknown"


@pytest.mark.parametrize(("times", "started"), [(5, True), (20, False)], ids=["started", "never-started"])
async def test_work_that_always_comes_back_is_poison(times: int, started: bool) -> None:
    async with inside(nodes=False) as whole:
        await whole.pretend_node()
        ask = asyncio.create_task(whole.client.ask("brings it down", capability="code", request_id="r1"))

        await executors_die(whole, times, started=started)
        await whole.start_node()
        with pytest.raises(RequestFailedError) as failed:
            async with asyncio.timeout(20):
                await ask
        assert (failed.value.error.type, failed.value.error.spent) == ("poison", "unknown")
        assert "llm.dead.poison" in await dead_letters(whole)
        assert await whole.bus.count(EVENTS, "llm.evt.tester.r1.attempt_started") == (times - 1 if started else 0)


async def test_what_only_waited_where_executors_died_is_no_poison() -> None:
    async with inside(nodes=False) as whole:
        await whole.pretend_node()
        ask = asyncio.create_task(whole.client.ask("나는 기다렸을 뿐이다", capability="code", request_id="r1"))
        await executors_die(whole, 7, started=False)
        await whole.start_node()
        async with asyncio.timeout(20):
            assert (await ask).status == "ok"


async def executors_die(whole: Inside, times: int, *, started: bool) -> None:
    """With the work in their hands; of the first time an executor's start may be missing."""
    died = asyncio.Semaphore(0)

    async def die(delivery: Delivery) -> None:
        if started and delivery.delivered > 1:
            work = WorkItem.decode(delivery.data)
            await Reporter(whole.bus, "bench").started(work, f"1.{delivery.delivered}", "loopback", whole.bus.now_ms())
        await delivery.nak(0)
        died.release()

    async with whole.bus.consume(work_consumer("bench", "echo", "normal"), later(die), batch=lambda: 1):
        for _ in range(times):
            await died.acquire()


async def in_force(whole: Inside, revision: int) -> None:
    async with asyncio.timeout(5):
        while whole.book is None or whole.book.in_force.revision != revision:
            await asyncio.sleep(0.01)


async def test_a_new_policy_is_taken_without_restart_and_a_bad_one_is_not() -> None:
    async with inside() as whole:
        assert (await whole.client.ask("x", capability="code")).model == "echo"
        revision = await whole.apply(lambda text: text.replace("code: {models: [echo]", "code: {models: [spare]"))
        await in_force(whole, revision)
        reply = await whole.client.ask("x", capability="code")
        assert (reply.model, reply.policy) == ("spare", revision)

        bucket = await whole.bus.client.jetstream().key_value(POLICY_BUCKET)
        await bucket.put("r000009", b"version: 1\nmodels: {oops")
        await bucket.put("active", b"9")
        await whole.bus.fence()
        reply = await whole.client.ask("still good", capability="code")
        assert (reply.model, reply.policy) == ("spare", revision)
        again = await PolicyStore(bucket).rollback(1)
        await in_force(whole, again.number)
        assert (await whole.client.ask("x", capability="code")).model == "echo"


async def test_every_refusal_is_on_the_record() -> None:
    async with inside() as whole:
        await publish(whole, b"{broken", "r1")
        reply = await reply_to(whole, "r1")
        letter = await stored(whole, EVENTS, "llm.evt.tester.r1.decided")
        decided = Decided.decode(letter.data)
        assert decided.decision.choice.action == "refuse"
        assert decided.decision.line() == reply.decision == "refused:bad_request"
        await stored(whole, EVENTS, "llm.evt.tester.r1.replied")
        assert str(ReplySubject("tester", "r1")) == "llm.res.tester.r1"
