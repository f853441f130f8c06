"""The provider without a model says what it is, does what it is told, and costs next to nothing."""

import os
import subprocess
import sys
import time
from typing import Any, get_args

import pytest

from adapters.providers import DIALECTS, Backend, Setup, build
from adapters.providers.loopback import Loopback
from router.errors import AttemptError
from router.ports import Call, Progress
from schemas.failure import FailureKind
from schemas.outcome import Answer
from schemas.policy import Dialect
from schemas.request import Chat


def call(text: str = "hello", *, told: Any = None, stands_in_for: str | None = None, **chat: Any) -> Call:
    turns = chat.pop("messages", [{"role": "user", "content": text}])
    metadata = None if told is None else {"loopback": told}
    asked = Chat.model_validate({"messages": turns, "metadata": metadata, **chat})
    return Call("none", asked, first_token_ms=1000, idle_ms=1000, stands_in_for=stands_in_for)


async def ask(asked: Call, pieces: list[str] | None = None) -> Answer:
    heard: list[str] = [] if pieces is None else pieces
    answer = await Loopback().chat(asked, Progress(heard.append))
    assert "".join(heard) == answer.text
    return answer


async def test_it_says_that_it_is_no_model_and_for_whom_it_stands() -> None:
    answer = await ask(call("이 함수를 고쳐 주세요", stands_in_for="qwen3-coder:32b"))
    assert answer.text == "[loopback: no model answered; standing in for qwen3-coder:32b] 이 함수를 고쳐 주세요"
    assert (await ask(call())).text == "[loopback: no model answered] hello"


async def test_it_repeats_the_last_user_turn_and_no_other() -> None:
    turns = [{"role": "user", "content": "first"}, {"role": "user", "content": "둘째"}, {"role": "assistant"}]
    assert (await ask(call(messages=turns))).text.endswith("] 둘째")
    assert (await ask(call(messages=[{"role": "system", "content": "x"}]))).text == "[loopback: no model answered]"


async def test_a_long_turn_is_cut_between_words() -> None:
    text = "안녕하세요 여러분 " * 5000
    opening = (await ask(call(text))).text.partition("] ")[2]
    assert len(opening.split()) == 12
    assert text.startswith(opening)


async def test_usage_is_counted_by_the_rule() -> None:
    usage = (await ask(call("12345", told={"text": ""}))).usage
    assert usage is not None
    assert (usage.tokens_in, usage.tokens_out) == (2, 1)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (3, 3), (7, 7), (500, 7)])
async def test_pieces(count: int, expected: int) -> None:
    pieces: list[str] = []
    answer = await ask(call(told={"text": "가나다 abc", "pieces": count, "piece_ms": 1, "delay_ms": 1}), pieces)
    assert answer.text == "가나다 abc"
    assert len(pieces) == expected


@pytest.mark.parametrize("kind", FailureKind)
async def test_it_fails_as_told(kind: FailureKind) -> None:
    with pytest.raises(AttemptError) as caught:
        await ask(call(told={"fail": kind.value}))
    assert caught.value.failure.kind is kind


@pytest.mark.parametrize("told", [5, {"delay_ms": -1}, {"pieces": 0}, {"fail": "nonsense"}, {"text": ["x"]}])
async def test_nonsense_is_a_bad_request(told: Any) -> None:
    with pytest.raises(AttemptError, match=r"metadata\.loopback") as caught:
        await ask(call(told=told))
    assert caught.value.failure.kind is FailureKind.BAD_REQUEST


async def test_it_crashes_only_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttemptError) as caught:
        await ask(call(told={"crash": True}))
    assert caught.value.failure.kind is FailureKind.UNSUPPORTED

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit, match="1"):
        await Loopback(allow_crash=True).chat(call(told={"crash": True}), Progress())


async def test_the_registry_builds_every_dialect() -> None:
    assert set(DIALECTS) == set(get_args(Dialect))
    for dialect in DIALECTS:
        provider = build(dialect, Setup("http://127.0.0.1:9", {"m": Backend()}))
        await provider.aclose()
    assert await build("loopback", Setup(models={"m": Backend()})).probe() == {"m": None}


def test_the_registry_and_the_loopback_import_no_http_client() -> None:
    code = "import sys, adapters.providers.loopback; sys.exit('httpx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_it_is_cheap() -> None:
    loopback, asked, progress = Loopback(), call("안녕하세요, 잘 지내세요?", stands_in_for="gemma3:12b"), Progress()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(1000):
            await loopback.chat(asked, progress)
        best = min(best, (time.perf_counter() - start) / 1000)
    assert best < 100e-6  # about 5 µs where nothing else runs
