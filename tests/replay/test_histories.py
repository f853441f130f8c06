"""Old histories are decided today as they were then: a difference means that the router changed its mind."""

import json
from pathlib import Path
from typing import Any

import pytest

from ops.policy_file import load_policy
from router.core.replay import differences
from schemas.decision import Decided
from schemas.prices import PriceTable
from subjects import Request, parse

HISTORIES = sorted(Path(__file__).with_name("histories").glob("*.json"))


def test_there_are_histories() -> None:
    assert HISTORIES


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_history_is_decided_as_it_was(path: Path) -> None:
    history: dict[str, Any] = json.loads(path.read_text())
    policy = load_policy(history["policy"], path.name)
    if prices := history.get("prices"):
        policy = PriceTable.model_validate(prices).fill(policy)
    requests = {request["seq"]: request for request in history["requests"]}
    found = {}
    for record in history["decided"]:
        decided = Decided.model_validate(record)
        request = requests[decided.request_seq]
        subject = parse(request["subject"])
        assert isinstance(subject, Request)
        body, headers, seq = request["body"].encode(), request["headers"], request["seq"]
        if changed := differences(decided, subject, body, headers, seq, policy):
            found[f"{decided.client}/{decided.rid}"] = changed
    assert not found
    assert len(history["decided"]) == len(requests) > 40
