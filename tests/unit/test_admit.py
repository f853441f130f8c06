"""Whatever bytes arrive become a request or a typed refusal, under names that are tokens, quickly and without harm."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.admit import ANONYMOUS, Asked, admit
from schemas import headers as h
from schemas.failure import ErrorType
from schemas.policy import Limits
from schemas.request import request_hash
from subjects import Request, is_token

LIMITS = Limits()
BAD_IDS = ("a b", "a.b", "*", ">", "a\nb", "x" * 65, "한국어", "$JS.API", "a\u2028b")


def asked(body: bytes | dict[str, Any], client: str | None = None, limits: Limits = LIMITS, /, **headers: str) -> Asked:
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return admit(Request("code", client), data, named, 7, limits)


def refusal(result: Asked) -> tuple[ErrorType, str]:
    assert result.request is None
    assert result.refusal is not None
    assert is_token(result.client)
    assert is_token(result.rid)
    return result.refusal.error, result.refusal.message


NOT_EVEN_A_BODY = {
    "cut off": b'{"prompt": "x"',
    "trailing": b'{"prompt": "x"} and more',
    "no quotes": b"{prompt: x}",
    "two commas": b'{"prompt": "x",,}',
    "invalid utf-8": b"caf\xe9",
    "invalid utf-8 in JSON": b'{"prompt": "caf\xe9"}',
    "lone surrogate, escaped": b'{"prompt": "\\ud800"}',
    "lone surrogate, raw": b'{"prompt": "\xed\xa0\x80"}',
    "UTF-16 with BOM": '{"prompt": "안녕"}'.encode("utf-16"),
    "UTF-16, little end first": '{"prompt": "x"}'.encode("utf-16-le"),
    "100,000 arrays": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"prompt": "x", "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "a number of 10,000 digits": b'{"prompt": "x", "deadline_ms": ' + b"9" * 10_000 + b"}",
    "10,000 digits where anything may stand": b'{"prompt": "x", "metadata": {"n": ' + b"9" * 10_000 + b"}}",
}


@pytest.mark.parametrize("body", NOT_EVEN_A_BODY.values(), ids=NOT_EVEN_A_BODY.keys())
def test_what_cannot_be_read_is_refused_and_a_dead_letter(body: bytes) -> None:
    result = asked(body)
    kind, message = refusal(result)
    assert kind is ErrorType.BAD_REQUEST
    assert 10 < len(message) < 300
    assert result.unreadable
    assert result.rid == "seq-7"


WRONG = {
    "nothing": b"",
    "blanks": b" \n\t ",
    "empty prompt": {"prompt": ""},
    "no prompt": {},
    "wrong type": {"prompt": 5},
    "wrong type inside": {"messages": [{"role": "user", "content": 5}]},
    "an array": b"[1, 2]",
    "unknown urgency": {"prompt": "x", "urgency": "now"},
    "NaN": b'{"prompt": "x", "preferences": {"temperature": NaN}}',
    "infinity": b'{"prompt": "x", "constraints": {"max_cost_usd": 1e999}}',
    "deadline of a month": {"prompt": "x", "deadline_ms": 2_592_000_000},
    "NUL": {"prompt": "a\x00b"},
    "NUL in context": {"prompt": "a", "context": "b\x00"},
    "NUL in a turn": {"messages": [{"role": "user", "content": [{"type": "text", "text": "\x00"}]}]},
    "NUL in plain text": b"a\x00b",
    "UTF-16, big end first": '{"prompt": "x"}'.encode("utf-16-be"),
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
def test_a_body_that_says_nothing_usable_is_refused(body: bytes | dict[str, Any]) -> None:
    result = asked(body)
    kind, message = refusal(result)
    assert kind is ErrorType.BAD_REQUEST
    assert 10 < len(message) < 400
    assert not result.unreadable


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    secret = "sk-this-is-secret"
    _, message = refusal(asked({"prompt": {"hidden": secret}, "urgency": secret, "deadline_ms": secret}))
    assert secret not in message


def test_a_refusal_names_a_few_errors_and_counts_the_rest() -> None:
    _, message = refusal(asked({"prompt": 1, "model": 1, "messages": [{"role": "x", "content": 1}] * 1000}))
    assert len(message) < 1000
    assert "messages.0.role" in message
    assert "messages.1" not in message
    assert "(and 2 more)" in message


@pytest.mark.parametrize("size", [2_000_001, 10_000_000])
def test_a_body_over_the_limit_is_refused_by_its_size(size: int) -> None:
    result = asked(b"x" * size, Llm_Request_Id="r1")
    assert refusal(result)[0] is ErrorType.PAYLOAD_TOO_LARGE
    assert result.rid == "r1"
    assert asked(b"x" * 2_000_000).request is not None


def _nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "where",
    [
        lambda deep: {"prompt": "x", "metadata": {"a": deep}},
        lambda deep: {"prompt": "x", "tools": [{"a": deep}]},
        lambda deep: {"prompt": "x", "response_format": {"a": deep}},
        lambda deep: {"prompt": "x", "nobody_knows": deep},
        lambda deep: {"prompt": "x", "tool_choice": {"a": deep}},
        lambda deep: {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "a": deep}]}]},
        lambda deep: {"messages": [{"role": "assistant", "tool_calls": [{"a": deep}]}]},
        lambda deep: {"messages": [{"role": "user", "content": "x", "nobody_knows": deep}]},
        lambda deep: {"prompt": "x", "preferences": {"nobody_knows": deep}},
    ],
    ids=["metadata", "tools", "response_format", "unknown", "tool_choice", "content", "tool_calls", "turn", "wish"],
)
def test_a_body_must_not_nest_too_deep_wherever_it_nests(where: Any) -> None:
    assert asked(where(_nested(20))).refusal is None
    # Deeper than the policy allows, and shallower than what a JSON reader refuses by itself.
    kind, message = refusal(asked(where(_nested(185))))
    assert kind is ErrorType.BAD_REQUEST
    assert "nests deeper" in message


KEYS = b", ".join(b'"k%d": 1' % n for n in range(150_000))
MANY = {
    "keys": b'{"prompt": "x", %s}' % KEYS,
    "keys in metadata": b'{"prompt": "x", "metadata": {%s}}' % KEYS,
    "keys in preferences": b'{"prompt": "x", "preferences": {%s}}' % KEYS,
    "keys in a turn": b'{"messages": [{"role": "user", "content": "x", %s}]}' % KEYS,
    "keys in a tool": b'{"prompt": "x", "tools": [{"type": "function", "function": {%s}}]}' % KEYS,
    "no turns": b'{"messages": [%s]}' % b",".join([b"1"] * 900_000),
    "empty turns": b'{"messages": [%s]}' % b",".join([b"{}"] * 600_000),
    "empty parts": b'{"messages": [{"role": "user", "content": [%s]}]}' % b",".join([b"{}"] * 600_000),
    "no texts": b'{"embed": [%s]}' % b",".join([b"1"] * 900_000),
    "texts": b'{"embed": [%s]}' % b",".join([b'"a"'] * 450_000),
    "lists in lists": b'{"prompt": "x", "metadata": {"a": [%s]}}' % b",".join([b"[[[[[[[[]]]]]]]]"] * 110_000),
    "one key": b'{"prompt": "x", %s}' % b",".join([b'"a":1'] * 300_000),
}


@pytest.mark.parametrize("body", MANY.values(), ids=MANY.keys())
def test_a_body_of_very_many_values_is_refused_in_no_time_and_by_its_own_name(body: bytes) -> None:
    named = body[:-1] + b', "agent": "npc-ai", "request_id": "r1"}'
    start = time.process_time()
    result = asked(named)
    assert time.process_time() - start < 1  # built, each would take up to 5 s
    kind, message = refusal(result)
    assert kind is ErrorType.BAD_REQUEST
    assert "over 50000 JSON values" in message
    assert (result.client, result.rid, result.unreadable) == ("npc-ai", "r1", False)


WRONG_LISTS = {
    "turns": ("messages", "messages.0"),
    "texts": ("embed", "embed.0"),
    "tools": ("tools", "tools.0"),
    "stops": ("preferences", "preferences.stop"),
}


@pytest.mark.parametrize(("field", "place"), WRONG_LISTS.values(), ids=WRONG_LISTS.keys())
def test_of_a_list_of_faults_the_first_is_told(field: str, place: str) -> None:
    faults = [1] * 40_000
    _, message = refusal(asked({"prompt": "x", field: {"stop": faults} if field == "preferences" else faults}))
    assert place in message
    assert "more)" not in message


TOOL = {
    "type": "function",
    "function": {
        "name": "act",
        "description": "행동하다",
        "parameters": {
            "type": "object",
            "properties": {f"p{n}": {"type": "string", "description": "무엇을, 어디서"} for n in range(100)},
        },
    },
}
CODE = 'def f(a: list[int]) -> dict[str, int]:\n    return {"a": [1, 2, 3], "나": {}}\n'
LARGE = {
    "a long prompt": {"prompt": CODE * 18_000},
    "200 turns of code": {"messages": [{"role": "user", "content": CODE * 90}] * 200},
    "128 tools of 100 parameters": {"prompt": "x", "tools": [TOOL] * 128},
    "2048 texts": {"embed": ["항구, [배], {닻}"] * 2048},
    "a turn in 1,000 parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": CODE}] * 1_000}]},
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE.keys())
def test_what_is_only_large_is_taken(body: dict[str, Any]) -> None:
    assert asked(body).refusal is None


def test_text_that_looks_like_a_list_may_have_any_number_of_commas() -> None:
    request = asked(b"[GM], " + b"a, [b], " * 200_000).request
    assert request is not None
    assert request.prompt is not None
    assert request.prompt.startswith("[GM]")


def test_a_byte_order_mark_hides_nothing() -> None:
    deep = json.dumps({"prompt": "x", "metadata": {"a": _nested(100)}}).encode()
    assert "nests deeper" in refusal(asked(b"\xef\xbb\xbf" + deep))[1]
    assert "JSON values" in refusal(asked(b"\xef\xbb\xbf" + MANY["keys"]))[1]


def test_of_a_key_given_twice_the_last_counts() -> None:
    request = asked(b'{"prompt": "a", "prompt": "b"}').request
    assert request is not None
    assert request.prompt == "b"


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        (b"Write a haiku.", "Write a haiku."),
        ("마법사에게 인사해줘".encode(), "마법사에게 인사해줘"),
        (b"\xef\xbb\xbfhello", "hello"),
        ('\ufeff{"prompt": "안녕"}'.encode(), "안녕"),
        (b'  \n {"prompt": "x"}', "x"),
        (b'{"prompt": "\\uc548\\ub155 \\ud83d\\ude00"}', "안녕 😀"),
        (b"null", "null"),
        (b"5", "5"),
    ],
    ids=ascii,
)
def test_json_or_plain_text_is_a_prompt(body: bytes, prompt: str) -> None:
    result = asked(body)
    assert result.refusal is None
    assert result.request is not None
    assert result.request.prompt == prompt
    assert result.request_hash == request_hash("code", body)


def test_too_many_messages_are_refused() -> None:
    turn = {"role": "user", "content": "x"}
    small = Limits(max_messages=3)
    assert asked({"messages": [turn] * 3}, None, small).request is not None
    assert refusal(asked({"messages": [turn] * 4}, None, small))[0] is ErrorType.BAD_REQUEST


@pytest.mark.parametrize(
    ("client", "headers", "body", "expected"),
    [
        ("npc-ai", {"Llm_Client": "forged", "Llm_Agent": "forged"}, {"prompt": "x", "agent": "forged"}, "npc-ai"),
        (None, {"Llm_Client": "gm", "Llm_Agent": "a"}, {"prompt": "x", "agent": "b"}, "gm"),
        (None, {"Llm_Agent": "a"}, {"prompt": "x", "agent": "b"}, "a"),
        (None, {}, {"prompt": "x", "agent": "b"}, "b"),
        (None, {}, {"prompt": "x"}, ANONYMOUS),
    ],
)
def test_who_asks_is_what_the_broker_stamped_before_what_the_client_says(
    client: str | None, headers: dict[str, str], body: dict[str, str], expected: str
) -> None:
    assert asked(body, client, **headers).client == expected


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"Llm_Request_Id": "a", "Nats_Msg_Id": "b"}, {"prompt": "x", "request_id": "c"}, "a"),
        ({"Nats_Msg_Id": "b"}, {"prompt": "x", "request_id": "c"}, "c"),
        ({"Nats_Msg_Id": "b"}, {"prompt": "x"}, "b"),
        ({"Nats_Msg_Id": "not a token"}, {"prompt": "x"}, "seq-7"),
        ({}, {"prompt": "x"}, "seq-7"),
    ],
)
def test_the_id_of_a_request_has_one_order_of_precedence(
    headers: dict[str, str], body: dict[str, str], expected: str
) -> None:
    result = asked(body, **headers)
    assert result.rid == expected
    assert result.refusal is None


@pytest.mark.parametrize("bad", BAD_IDS, ids=ascii)
def test_a_name_that_is_no_token_is_refused_and_replaced(bad: str) -> None:
    for result in (
        asked({"prompt": "x"}, Llm_Client=bad),
        asked({"prompt": "x"}, Llm_Agent=bad),
        asked({"prompt": "x", "agent": bad}),
    ):
        assert refusal(result)[0] is ErrorType.BAD_REQUEST
        assert result.client == ANONYMOUS
    for result in (asked({"prompt": "x"}, Llm_Request_Id=bad), asked({"prompt": "x", "request_id": bad})):
        assert refusal(result)[0] is ErrorType.BAD_REQUEST
        assert result.rid == "seq-7"


def test_the_agent_of_the_header_is_the_agent_of_the_request() -> None:
    """`Llm-Agent`: whose preferences of the policy apply, when the body does not say."""
    named = asked({"prompt": "x"}, Llm_Agent="npc-ai").request
    assert named is not None
    assert named.agent == "npc-ai"
    both = asked({"prompt": "x", "agent": "gm"}, Llm_Agent="npc-ai").request
    assert both is not None
    assert both.agent == "gm"


@pytest.mark.parametrize(
    ("own", "budget", "bound"),
    [(None, "0.5", 0.5), (0.1, "0.5", 0.1), (0.9, "0.5", 0.5), (0.9, None, 0.9), (1, "0", 0)],
)
def test_the_lower_of_two_budgets_holds_and_the_request_is_the_same(
    own: float | None, budget: str | None, bound: float
) -> None:
    body = {"prompt": "안녕", "constraints": {} if own is None else {"max_cost_usd": own}}
    result = asked(body) if budget is None else asked(body, Llm_Budget_Usd=budget)
    assert result.request is not None
    assert result.request.constraints.max_cost_usd == bound
    assert result.request_hash == asked(body).request_hash


@pytest.mark.parametrize("budget", ["", "much", "-1", "nan", "inf", "1e999", "0x1"])
def test_a_budget_that_is_none_is_refused(budget: str) -> None:
    result = asked({"prompt": "x"}, Llm_Budget_Usd=budget)
    kind, message = refusal(result)
    assert kind is ErrorType.BAD_REQUEST
    assert h.BUDGET_USD in message
    assert not result.unreadable


def test_the_models_that_may_answer_come_with_the_request() -> None:
    assert asked(b"x").models is None
    assert asked(b"x", Llm_Allowed_Models="echo,spare").models == frozenset({"echo", "spare"})


@pytest.mark.parametrize("wrong", [{"prompt": ""}, {"prompt": 5}, {"prompt": "x", "urgency": "now"}], ids=json.dumps)
def test_a_refusal_is_addressed_to_the_names_that_stand_in_the_body(wrong: dict[str, Any]) -> None:
    result = asked({**wrong, "request_id": "r1", "agent": "npc-ai"})
    refusal(result)
    assert (result.client, result.rid) == ("npc-ai", "r1")


def test_the_trace_goes_with_the_request() -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert asked(b"x", traceparent=trace).traceparent == trace
    for wrong in ("00-1-2-01", trace.upper(), "0" * 65_000):
        assert asked(b"x", traceparent=wrong).traceparent is None
    assert h.TRACEPARENT == "traceparent"


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: ("{" + text).encode("utf-8", "replace")))
def test_no_bytes_bring_it_down(body: bytes) -> None:
    result = asked(body)
    assert (result.request is None) == (result.refusal is not None)
    assert is_token(result.client)
    assert is_token(result.rid)


@given(st.dictionaries(st.sampled_from([h.CLIENT, h.AGENT, h.REQUEST_ID, h.MSG_ID]), st.text(max_size=80)))
def test_no_headers_bring_it_down(headers: dict[str, str]) -> None:
    result = admit(Request("code"), b"x", headers, 7, LIMITS)
    assert is_token(result.client)
    assert is_token(result.rid)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=10,
    ),
    st.sampled_from(["prompt", "messages", "context", "agent", "task", "model", "preferences", "constraints", "urgency",
                     "stream", "deadline_ms", "tools", "tool_choice", "response_format", "metadata", "request_id"]),
)  # fmt: skip
def test_no_value_in_any_field_brings_it_down(value: Any, field: str) -> None:
    result = asked({"prompt": "x", field: value})
    assert (result.request is None) == (result.refusal is not None)
