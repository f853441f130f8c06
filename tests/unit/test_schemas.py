"""Messages come back as they went, cannot be changed, tolerate what newer peers add, and never invent a cost."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import schemas
from schemas import (
    VERSION,
    Answer,
    AttemptEnded,
    AttemptRecord,
    AttemptStarted,
    AttemptTimings,
    BackendState,
    Candidate,
    Chat,
    ChatMessage,
    Chunk,
    Decided,
    Decision,
    Error,
    ErrorType,
    Failure,
    FailureKind,
    Finding,
    Forward,
    Health,
    Heartbeat,
    LlmRequest,
    ModelState,
    NodeView,
    Outcome,
    Policy,
    Refuse,
    Replied,
    Reply,
    ReplyMessage,
    Target,
    Timings,
    Usage,
    Wait,
    WorkItem,
    World,
    attempt_id,
)
from schemas import headers as h
from schemas.base import Message, Wire
from schemas.ids import message_id
from schemas.request import MAX_DEADLINE_MS, request_hash

TARGET = Target(node="macmini", model="coder", backend="qwen3-coder:32b", provider="ollama", role="coder")
CHAT = Chat(messages=(ChatMessage(role="user", content="마법사에게 인사해줘"),), stop=("끝",), metadata={"n": 1})
FAILURE = Failure(kind=FailureKind.SERVER_ERROR, message="busy", status=503, retry_after_ms=10, upstream="try later")
RECORD = AttemptRecord(
    attempt_id="1.1", node="macmini", model="coder", provider="ollama", failure=FAILURE, usage=Usage(tokens_in=3),
    cost_usd=Decimal("0.000000000001"), total_ms=1.5,
)  # fmt: skip
WORK = WorkItem(
    client="npc-ai", rid="r1", request_hash="0" * 64, request_seq=7, capability="code", urgency="high", attempt=1,
    target=TARGET, fallbacks=(TARGET,), chat=CHAT, received_ms=1, deadline_at_ms=2, sent_ms=1, policy=3,
    decision="coder@macmini", priors=(RECORD,), traceparent="00-a-b-01",
)  # fmt: skip
STATE = ModelState(provider="ollama", slots=2, running=1, waiting=3, ok=4, failed=1)
WORLD = World(
    as_of_ms=5, received_ms=4, request_seq=7, policy=3, nodes={"macmini": NodeView(heard_ms=3, models={"coder": STATE})}
)
DECISION = Decision(
    choice=Forward(target=TARGET), stage="strategy", task="code", route="task:code", strategy="quality",
    findings=(Finding(rule="secrets", code="aws_access_key", score=0.9, action="redact"),),
    candidates=(Candidate(node="macmini", model="coder", score=1.0),),
)  # fmt: skip
ERROR = Error(type=ErrorType.OVERLOADED, request_id="r1", message="later", retryable=True, retry_after_ms=5)
REPLY = Reply(
    request_id="r1", client="npc-ai", request_hash="0" * 64, status="ok", message=ReplyMessage(content="안녕"),
    cost_usd=Decimal("0.0000012"), timings=Timings(total_ms=12.34), attempts=(RECORD,),
)  # fmt: skip

EXAMPLES: tuple[Message, ...] = (
    WORK,
    REPLY,
    LlmRequest(prompt="Write a function.", agent="npc-ai", metadata={"scene": "선술집"}),
    Outcome(work=WORK, attempt_id="1.1", node="macmini", provider="ollama", timings=AttemptTimings(total_ms=2.5),
            answer=Answer(text="네", tool_calls=({"id": "1"},), usage=Usage(tokens_out=1))),
    Chunk(request_id="r1", attempt_id="1.1", n=0, text="안", reasoning="흠"),
    Decided(client="npc-ai", rid="r1", request_hash="0" * 64, request_seq=7, capability="code", world=WORLD,
            decision=DECISION),
    AttemptStarted(client="npc-ai", rid="r1", attempt_id="1.1", target=TARGET, provider="ollama", started_ms=9),
    AttemptEnded(client="npc-ai", rid="r1", attempt=RECORD, booking="unknown", next=TARGET, why="next_target"),
    Replied(client="npc-ai", rid="r1", request_hash="0" * 64, status="error", error=ErrorType.POISON, total_ms=1),
    Heartbeat(node="macmini", instance="i", version="1", models={"coder": STATE}, power="battery"),
    Health(node="macmini", instance="i", version="1", models={"coder": STATE}, status="ok", memory_free_bytes=5,
           backends={"ollama": BackendState(reachable=False, why_not="꺼져 있음")}),
)  # fmt: skip


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    assert type(message).decode(message.encode()) == message
    assert message.v == VERSION


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_cannot_be_changed(message: Message) -> None:
    for field in type(message).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(message, field, None)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_fields_of_a_newer_peer_are_no_error(message: Message) -> None:
    newer = _with_unknown_fields(json.loads(message.encode()), inside=not isinstance(message, LlmRequest))
    read = type(message).decode(json.dumps(newer))
    known = read.model_copy(update={"v": VERSION})
    if isinstance(known, LlmRequest):
        assert known.model_extra == {"from_the_future": {"x": [1]}}
    else:
        assert known == message


@pytest.mark.parametrize(
    "choice", [Forward(target=TARGET), Refuse(error=ErrorType.NO_ROUTE, message="?"), Wait(until_ms=1)]
)
def test_a_choice_is_read_back_as_the_same_kind(choice: Forward | Refuse | Wait) -> None:
    decision = DECISION.model_copy(update={"choice": choice})
    assert Decision.decode(decision.encode()) == decision
    assert decision.line().endswith(" route=task:code strategy=quality")


def test_every_model_has_a_json_schema() -> None:
    models = [x for name in schemas.__all__ if isinstance(x := getattr(schemas, name), type) and issubclass(x, Wire)]
    assert len(models) > 20
    everything: list[type[BaseModel]] = [*models, Policy]
    for model in everything:
        schema = json.loads(json.dumps(model.model_json_schema()))
        assert schema["type"] == "object"
        assert _dangling(schema) == set()


@given(st.data())
def test_headers_and_body_of_a_reply_agree(data: st.DataObject) -> None:
    reply = data.draw(_REPLIES)
    body = json.loads(reply.encode())
    headers = reply.headers()
    usage = body.get("usage", {})
    assert headers[h.REQUEST_ID] == body["request_id"]
    assert headers[h.CLIENT] == body["client"]
    assert headers[h.STATUS] == body["status"]
    assert headers.get(h.ERROR) == body.get("error", {}).get("type")
    for name, field in ((h.MODEL, "model"), (h.NODE, "node"), (h.PROVIDER, "provider"), (h.DECISION, "decision")):
        assert headers.get(name) == body.get(field)
    for name, number in (
        (h.COST_USD, body.get("cost_usd")), (h.TOKENS_IN, usage.get("tokens_in")),
        (h.TOKENS_OUT, usage.get("tokens_out")), (h.POLICY, body.get("policy")), (h.ATTEMPTS, len(body["attempts"])),
    ):  # fmt: skip
        assert (name in headers) == (number is not None)
        assert number is None or Decimal(headers[name]) == Decimal(number)
    for name, field in ((h.LATENCY_MS, "total_ms"), (h.QUEUE_MS, "queue_ms"), (h.TTFT_MS, "first_token_ms")):
        ms = body["timings"].get(field)
        assert (name in headers) == (ms is not None)
        assert ms is None or float(headers[name]) == pytest.approx(ms, abs=0.051)


@given(st.decimals(min_value=0, max_value=10_000, allow_nan=False, places=14))
def test_a_cost_keeps_every_digit(usd: Decimal) -> None:
    reply = REPLY.model_copy(update={"cost_usd": usd})
    assert Reply.decode(reply.encode()).cost_usd == usd
    assert Decimal(reply.headers()[h.COST_USD]) == usd
    assert "E" not in reply.headers()[h.COST_USD]


def test_an_answer_stored_before_stop_sequences_were_told_is_still_read() -> None:
    answer = b'{"text":"\xeb\x84\xa4","tool_calls":[],"finish_reason":"stop"}'
    assert (Answer.decode(answer).text, Answer.decode(answer).stop_sequence) == ("네", None)
    stored = json.loads(REPLY.model_copy(update={"stop_sequence": "끝"}).encode())
    assert stored.pop("stop_sequence") == "끝"
    assert Reply.decode(json.dumps(stored)).stop_sequence is None


def test_an_unknown_cost_is_absent_and_a_known_zero_is_there() -> None:
    unknown = REPLY.model_copy(update={"cost_usd": None})
    assert "cost_usd" not in json.loads(unknown.encode())
    assert h.COST_USD not in unknown.headers()
    assert Reply.decode(unknown.encode()).cost_usd is None
    free = REPLY.model_copy(update={"cost_usd": Decimal(0)})
    assert Decimal(free.headers()[h.COST_USD]) == 0
    assert Reply.decode(free.encode()).cost_usd == 0


def test_a_refusal_names_its_request_and_a_cancelled_one_says_so() -> None:
    refused = Reply.refused(client="c", request_hash="0" * 64, error=ERROR, total_ms=1)
    assert (refused.request_id, refused.status, refused.cost_usd) == ("r1", "error", None)
    gone = ERROR.model_copy(update={"type": ErrorType.CANCELLED})
    assert Reply.refused(client="c", request_hash="0" * 64, error=gone, total_ms=1).status == "cancelled"


@pytest.mark.parametrize(
    "body",
    [
        {}, {"prompt": ""}, {"prompt": " \n"}, {"prompt": None}, {"prompt": 5}, {"prompt": ["x"]}, {"messages": []},
        {"messages": "x"}, {"messages": [{"role": "wizard", "content": "x"}]}, {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user", "content": ""}]}, {"context": "only context"},
        {"prompt": "x", "urgency": "now"}, {"prompt": "x", "deadline_ms": "soon"},
        {"prompt": "x", "deadline_ms": MAX_DEADLINE_MS + 1}, {"prompt": "x", "preferences": {"temperature": 3}},
        {"prompt": "x", "preferences": {"max_tokens": 0}}, {"prompt": "x", "preferences": {"strategy": "luck"}},
        {"prompt": "x", "constraints": {"max_cost_usd": -1}}, {"prompt": "x", "constraints": {"budget_constraint": 1}},
        {"prompt": "x", "tools": {}}, {"prompt": "x", "metadata": "x"}, {"prompt": "x", "constraints": []},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_request_of_wrong_types_or_without_a_prompt_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LlmRequest.decode(json.dumps(body))


def test_unknown_fields_of_a_request_are_kept() -> None:
    request = LlmRequest.decode('{"prompt": "x", "mood": "음산한", "preferences": {"voice": "low"}}')
    assert request.model_extra == {"mood": "음산한"}
    assert request.preferences.model_extra == {"voice": "low"}
    assert LlmRequest.decode(request.encode()) == request


@pytest.mark.parametrize(
    ("fields", "turns"),
    [
        ({"prompt": "p"}, ["p"]),
        ({"prompt": "p", "context": "c"}, ["c\n\np"]),
        ({"prompt": "p", "context": " "}, ["p"]),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, ["s", "u"]),
        ({"messages": [{"role": "system", "content": "s"}], "prompt": "p"}, ["s", "p"]),
        ({"messages": [{"role": "user", "content": "u"}], "context": "c", "prompt": "p"}, ["u", "c\n\np"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "가"}, {"type": "image_url"},
                                                    {"type": "text", "text": "나"}]}]}, ["가\n나"]),
    ],
)  # fmt: skip
def test_context_and_prompt_make_the_last_turn(fields: dict[str, Any], turns: list[str]) -> None:
    conversation = LlmRequest.decode(json.dumps(fields)).conversation()
    assert [turn.text() for turn in conversation] == turns
    assert "prompt" not in fields or conversation[-1].role == "user"


@pytest.mark.parametrize(("stop", "expected"), [(None, ()), ("끝", ("끝",)), (["a", "b"], ("a", "b"))])
def test_a_chat_carries_the_wishes_that_reach_a_provider(stop: object, expected: tuple[str, ...]) -> None:
    wish = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 3, **({} if stop is None else {"stop": stop})}
    request = LlmRequest.decode(json.dumps({"prompt": "p", "preferences": wish, "stream": True, "tools": [{"a": 1}]}))
    chat = Chat.of(request)
    assert (chat.max_tokens, chat.temperature, chat.top_p, chat.seed) == (5, 0.5, 0.9, 3)
    assert (chat.stop, chat.stream, chat.tools) == (expected, True, [{"a": 1}])


def test_a_hash_tells_capability_and_body_apart() -> None:
    pairs = [("code", b"x"), ("code", b"y"), ("plan", b"x"), ("code\nx", b""), ("code", b"\nx")]
    assert len({request_hash(capability, body) for capability, body in pairs}) == len(pairs)


def test_a_message_id_differs_in_every_part() -> None:
    parts = [
        ("work", "c", "r", 1),
        ("work", "c", "r", 2),
        ("work", "d", "r", 1),
        ("outcome", "c", "r", 1),
        ("work", "c", "r"),
    ]
    assert len({message_id(*each) for each in parts}) == len(parts)  # type: ignore[arg-type]
    assert attempt_id(2, 1) != attempt_id(1, 2)


_NAMES = st.from_regex(r"[a-z0-9-]{1,12}", fullmatch=True)
_MS = st.floats(0, 1e9)
_REPLIES = st.builds(
    Reply,
    request_id=_NAMES,
    client=_NAMES,
    request_hash=st.just("0" * 64),
    status=st.sampled_from(["ok", "error", "cancelled"]),
    message=st.none() | st.builds(ReplyMessage, content=st.text()),
    usage=st.none() | st.builds(Usage, tokens_in=st.integers(0, 10**9), tokens_out=st.integers(0, 10**9)),
    model=st.none() | _NAMES,
    node=st.none() | _NAMES,
    provider=st.none() | _NAMES,
    cost_usd=st.none() | st.decimals(0, 1000, allow_nan=False, places=12),
    timings=st.builds(Timings, total_ms=_MS, queue_ms=st.none() | _MS, first_token_ms=st.none() | _MS),
    attempts=st.lists(st.just(RECORD), max_size=6).map(tuple),
    decision=st.none() | _NAMES,
    policy=st.none() | st.integers(1, 10**6),
    error=st.none() | st.just(ERROR),
)


def _with_unknown_fields(value: Any, *, inside: bool) -> Any:
    """The same JSON with a field no version knows, in every object that is not the client's own."""
    if isinstance(value, list):
        return [_with_unknown_fields(item, inside=inside) for item in value]
    if not isinstance(value, dict):
        return value
    own = {"metadata", "tool_calls", "messages", "nodes", "models", "backends"}
    kept = {
        key: item if key in own or not inside else _with_unknown_fields(item, inside=True)
        for key, item in value.items()
    }
    return {**kept, "from_the_future": {"x": [1]}}


def _dangling(schema: dict[str, Any]) -> set[str]:
    """References to definitions that are not there."""
    named = {f"#/$defs/{name}" for name in schema.get("$defs", {})}
    found: set[str] = set()
    todo: list[Any] = [schema]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            found |= {item["$ref"]} if isinstance(item.get("$ref"), str) else set()
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return found - named
