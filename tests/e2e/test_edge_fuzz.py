"""Whatever the document allows, and what it does not, is sent to a real edge: no fault of its own, no hang, all typed.

EDGE_FUZZ_CASES is how many of each kind every operation gets; without it some hundred in all.
"""

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from adapters.edge.app import openapi_document, shape_of
from ops.edge import edge
from tests.support.inside import inside

Operation = schemathesis.APIOperation[Any, Any, Any, Any]
Case = schemathesis.Case[Any]
ANSWERED_S = 5.0
"""A loopback answers at once; the rest is for a machine that does much else."""
SCHEMA = schemathesis.openapi.from_dict(openapi_document())
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations() if isinstance(result, Ok)]
CASES = int(os.environ.get("EDGE_FUZZ_CASES", max(5, 120 // len(OPERATIONS))))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """An edge with all behind it, in a thread of its own."""
    ready: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        over = asyncio.Event()
        async with inside() as whole, edge(whole.url, port=0) as at:
            ready.set_result((at, asyncio.get_running_loop(), over))
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    at, loop, over = ready.result(30)
    try:
        yield at
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)


@pytest.mark.timeout(0 if "EDGE_FUZZ_CASES" in os.environ else 120)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_everything_is_answered_and_what_is_refused_is_typed(
    address: str, operation: Operation, mode: GenerationMode
) -> None:
    @settings(
        max_examples=CASES, deadline=None, database=None, derandomize="EDGE_FUZZ_CASES" not in os.environ,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        response = case.call(base_url=address, timeout=ANSWERED_S)
        if 200 <= response.status_code < 300:
            return
        error = typed(response.json(), operation.path)
        assert error["request_id"] == response.headers["x-llm-request-id"][0]
        assert error["message"]
        assert error["type"] != "internal"

    with nullcontext() if operation.body else suppress(Unsatisfiable):  # there may be nothing to get wrong
        ask()


def typed(body: dict[str, Any], path: str) -> dict[str, Any]:
    """The typed error, from where a path's dialect has it."""
    match shape_of(path):
        case "native":
            error: dict[str, Any] = body["error"]
        case "openai":
            error = body["error"]["llm"]
        case "anthropic":
            assert body["type"] == "error"
            error = body["error"]["llm"]
    return error
