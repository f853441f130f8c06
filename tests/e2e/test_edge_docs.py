"""The edge's documents: valid OpenAPI, complete, and examples that run as written."""

import asyncio
import io
import json
import re
import shutil
import sys
from contextlib import redirect_stdout
from typing import Any

import pytest
import schemathesis

from adapters.edge.app import openapi_document
from adapters.edge.examples import ABOUT, ADDRESS, ANSWERS
from adapters.edge.openapi import MEANING, operations
from schemas.failure import ErrorType
from tests.support.edge import edge_on
from tests.support.inside import inside
from tests.support.nats_server import OwnBroker
from tests.support.running_bus import running_bus

DOCUMENT = openapi_document()


def samples(label: str) -> list[tuple[str, str]]:
    """Name and source of each example in a language, in the document's order."""
    return [
        (f"{method} {path}: {sample['title']}", sample["source"])
        for method, path, operation in operations(DOCUMENT)
        for sample in operation["x-codeSamples"]
        if sample["label"] == label
    ]


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    named = set(re.findall(r'"#/components/(\w+)/([\w.-]+)"', json.dumps(DOCUMENT)))
    assert all(name in DOCUMENT["components"][kind] for kind, name in named)
    ids = [operation["operationId"] for _, _, operation in operations(DOCUMENT)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _ in operations(DOCUMENT)])
def test_every_door_is_described_and_has_an_example(method: str, path: str) -> None:
    assert ABOUT[f"{method} {path}"].examples or path == "/"


def test_every_error_has_a_meaning() -> None:
    assert set(MEANING) == set(ErrorType)


async def test_the_page_needs_nothing_from_elsewhere() -> None:
    async with inside(nodes=False, routers=0) as whole, edge_on(whole.url) as http:
        page = await http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert set(re.findall(r"https?://[^\"'`\s]+", page.text)) == {ADDRESS}
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", page.text)
        assert (await http.get("/openapi.json")).json() == DOCUMENT


async def test_the_examples_run_as_written_with_the_policy_as_shipped(broker: OwnBroker) -> None:
    async with running_bus(broker.url), edge_on(broker.url) as http:
        address = str(http.base_url).rstrip("/")
        said = await shell(samples("curl"), address)
        said += await asyncio.to_thread(python, samples("Python"), address)
        if shutil.which("node"):
            said += await node(samples("JavaScript"), address)
        for name, text in said:
            assert text.strip(), name
            assert not re.search("""["']error["']: *{""", text), (name, text)
        answers = dict(said[: len(samples("curl"))])
        for door, answer in ANSWERS.items():
            real = json.loads(answers[f"{door}: {ABOUT[door].examples[0].title}"])
            assert comes(answer, real), (door, real)


def comes(shown: Any, real: Any) -> bool:
    """Whether all fields that are shown are there; more may be."""
    match shown:
        case dict():
            return isinstance(real, dict) and all(name in real and comes(shown[name], real[name]) for name in shown)
        case list():
            return isinstance(real, list) and (not shown or (bool(real) and comes(shown[0], real[0])))
        case _:
            return not isinstance(real, dict | list)


async def shell(sources: list[tuple[str, str]], address: str) -> list[tuple[str, str]]:
    return [(name, await output(["bash", "-c", source.replace(ADDRESS, address)])) for name, source in sources]


def python(sources: list[tuple[str, str]], address: str) -> list[tuple[str, str]]:
    """In this process, whose SDKs are loaded once."""
    said = []
    for name, source in sources:
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(source.replace(ADDRESS, address), name, "exec"), {})  # noqa: S102
        said.append((name, out.getvalue()))
    return said


async def node(sources: list[tuple[str, str]], address: str) -> list[tuple[str, str]]:
    """In one process: each is a function of its own."""
    mark = "-- next --"
    lines = [
        f"await (async () => {{\n{source.replace(ADDRESS, address)}}})();\nconsole.log('{mark}');"
        for _, source in sources
    ]
    text = await output(["node", "--input-type=module", "-e", "\n".join(lines)])
    said = text.split(mark)[:-1]
    assert len(said) == len(sources), text
    return [(name, each) for (name, _), each in zip(sources, said, strict=True)]


async def output(command: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_schema_prints_the_document() -> None:
    said = await output([sys.executable, "-m", "ops.cli", "schema", "--openapi"])
    assert json.loads(said) == DOCUMENT
