"""Subjects are built and parsed as exact inverses, and what is no token never reaches one."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjects import (
    Address,
    Ask,
    Cancel,
    Chunk,
    Dead,
    Event,
    HealthCall,
    InvalidTokenError,
    Meter,
    NodeCall,
    Open,
    Outcome,
    Reply,
    Request,
    Work,
    is_token,
    parse,
    token,
)
from subjects.grammar import EVENT_KINDS, MAX_CHUNK, MAX_MINUTE, METER_KINDS, NODE_VERBS, URGENCIES
from subjects.streams import DISPATCHER, ROUTER, SETTLER, STREAMS, WAITERS, work_consumer

TOKEN = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
ADDRESS: st.SearchStrategy[Address] = st.one_of(
    st.builds(Request, TOKEN, st.none() | TOKEN),
    st.builds(Ask, TOKEN, st.none() | TOKEN),
    st.builds(Work, TOKEN, TOKEN, st.sampled_from(URGENCIES), TOKEN),
    st.builds(Outcome, TOKEN, TOKEN),
    st.builds(Reply, TOKEN, TOKEN),
    st.builds(Chunk, TOKEN, TOKEN, st.integers(0, MAX_CHUNK - 1)),
    st.builds(Event, TOKEN, TOKEN, st.sampled_from(EVENT_KINDS)),
    st.builds(Cancel, TOKEN, TOKEN),
    st.builds(Meter, TOKEN, st.sampled_from(METER_KINDS), st.integers(0, MAX_MINUTE - 1)),
    st.builds(Open, TOKEN, TOKEN),
    st.builds(NodeCall, TOKEN, st.sampled_from(NODE_VERBS)),
    st.builds(HealthCall),
    st.builds(Dead, TOKEN),
)
NEARLY = st.lists(
    st.sampled_from(["llm", "req", "ask", "work", "out", "res", "chunk", "evt", "cancel", "dead", "node", "drain",
                     "health", "meter", "tokens", "open",
                     "normal", "decided", "0", "1", "01", "a", "", "*", ">", " ", "한국어", "a\n", "٣"])
    | TOKEN,
    max_size=7,
).map(".".join)  # fmt: skip

INJECTIONS = (
    "",
    "*",
    ">",
    ".",
    " ",
    "a.b",
    "a.",
    ".a",
    "a b",
    "a\t",
    "a\r",
    "a\n",
    "\r\nPUB x 1\r\n",
    "a\x00",
    "a\x7f",
    "a\u2028",
    "\u200b",
    "a" * 65,
    "a" * 5000,
    "$JS.API.STREAM.DELETE.LLM_EVENTS",
    "_INBOX.>",
    "한국어",
    "éa",
    "Ａ",
    "٣",
    "\ud800",
    "a/b",
    "a=b",
    "a:b",
    "{}",
)

BUILDERS: tuple[Callable[[str], Address], ...] = (
    Request,
    lambda x: Request("code", x),
    Ask,
    lambda x: Ask("code", x),
    lambda x: Work(x, "m", "normal", "r"),
    lambda x: Work("n", x, "normal", "r"),
    lambda x: Work("n", "m", "normal", x),
    lambda x: Outcome(x, "r"),
    lambda x: Outcome("n", x),
    lambda x: Reply(x, "r"),
    lambda x: Reply("c", x),
    lambda x: Chunk(x, "r", 0),
    lambda x: Chunk("c", x, 0),
    lambda x: Event(x, "r", "decided"),
    lambda x: Event("c", x, "decided"),
    lambda x: Cancel(x, "r"),
    lambda x: Cancel("c", x),
    lambda x: Meter(x, "tokens", 0),
    lambda x: Open(x, "r"),
    lambda x: Open("c", x),
    lambda x: NodeCall(x, "health"),
    Dead,
)


@given(ADDRESS)
def test_every_address_is_read_back_from_its_subject(address: Address) -> None:
    assert parse(str(address)) == address


@given(st.text() | NEARLY)
def test_whatever_parses_is_built_back_to_the_same_text(subject: str) -> None:
    address = parse(subject)
    assert address is None or str(address) == subject


@given(ADDRESS, st.sampled_from(INJECTIONS), st.data())
def test_a_subject_with_a_bad_part_parses_to_nothing(address: Address, bad: str, data: st.DataObject) -> None:
    parts = str(address).split(".")
    parts[data.draw(st.integers(0, len(parts) - 1))] = bad
    parsed = parse(".".join(parts))
    # "a.b" in place of one part may make another valid subject; nothing else may.
    assert parsed is None or (bad == "a.b" and str(parsed) == ".".join(parts))


@pytest.mark.parametrize("bad", INJECTIONS, ids=ascii)
def test_what_is_no_token_never_reaches_a_subject(bad: str) -> None:
    assert not is_token(bad)
    for build in BUILDERS:
        with pytest.raises(InvalidTokenError):
            str(build(bad))
    with pytest.raises(InvalidTokenError):
        work_consumer(bad, "m", "normal")
    with pytest.raises(InvalidTokenError):
        work_consumer("n", bad, "normal")


@given(st.text())
def test_a_name_is_either_a_token_or_refused_everywhere(name: str) -> None:
    plain = 1 <= len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
    assert is_token(name) == plain
    for build in BUILDERS:
        if plain:
            assert name in str(build(name)).split(".")
        else:
            with pytest.raises(InvalidTokenError):
                str(build(name))


@pytest.mark.parametrize("value", [None, 5, b"abc", ["a"], True])
def test_only_text_is_a_token(value: object) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        token("client", value)
    assert caught.value.what == "client"
    assert caught.value.value is value


def test_the_refusal_of_a_long_name_is_short() -> None:
    with pytest.raises(InvalidTokenError) as caught:
        token("client", "x" * 5000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("n", [-1, MAX_CHUNK])
def test_a_chunk_number_has_bounds(n: int) -> None:
    with pytest.raises(ValueError, match="chunk number"):
        str(Chunk("c", "r", n))
    assert parse(f"llm.chunk.c.r.{n}") is None


@pytest.mark.parametrize("n", ["01", "+1", "1_0", "٣", "-0", "1" * 5000])
def test_a_number_has_one_spelling(n: str) -> None:
    assert parse(f"llm.chunk.c.r.{n}") is None
    assert parse(f"llm.meter.c.tokens.{n}") is None


def test_urgency_event_kind_and_verb_are_closed_lists() -> None:
    with pytest.raises(ValueError, match="urgency"):
        str(Work("n", "m", "decide", "r"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="event kind"):
        str(Event("c", "r", "guessed"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="verb"):
        str(NodeCall("n", "explode"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind"):
        str(Meter("c", "dollars", 0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="minute"):
        str(Meter("c", "tokens", MAX_MINUTE))
    assert parse("llm.meter.c.dollars.0") is None
    assert parse("llm.node.n.explode") is None
    assert parse("llm.work.n.m.decide.r") is None
    assert parse("llm.evt.c.r.guessed") is None


@given(ADDRESS)
def test_every_subject_but_the_doors_is_kept_by_exactly_one_stream(address: Address) -> None:
    keeping = [spec.name for spec in STREAMS if any(_matches(subject, str(address)) for subject in spec.subjects)]
    assert len(keeping) == (0 if isinstance(address, Ask | NodeCall | HealthCall) else 1)


@given(TOKEN, TOKEN, st.sampled_from(URGENCIES), TOKEN)
def test_work_is_taken_by_one_lane_only(node: str, model: str, urgency: str, rid: str) -> None:
    lanes = [work_consumer(node, model, each) for each in URGENCIES]
    assert len({lane.name for lane in lanes}) == len(URGENCIES)
    taking = [
        lane for lane in (*lanes, WAITERS) if _matches(lane.filter_subject, f"llm.work.{node}.{model}.{urgency}.{rid}")
    ]
    assert len(taking) == (2 if (node, model) == (ROUTER, "decide") else 1)


def test_the_routers_consumers_read_streams_that_exist() -> None:
    subjects = {spec.name: spec.subjects for spec in STREAMS}
    for consumer in (DISPATCHER, WAITERS, SETTLER):
        assert consumer.filter_subject.split(".")[:2] == subjects[consumer.stream][0].split(".")[:2]


def _matches(pattern: str, subject: str) -> bool:
    """NATS subject matching."""
    want, have = pattern.split("."), subject.split(".")
    if want[-1] == ">":
        want, have = want[:-1], have[: len(want) - 1] if len(have) >= len(want) else []
    return len(want) == len(have) and all(w in ("*", h) for w, h in zip(want, have, strict=True))
