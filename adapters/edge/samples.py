"""An example's lines in curl, Python and JavaScript. Pure."""

import shlex
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from pydantic_core import to_json

from adapters.edge.errors import JSON
from adapters.edge.examples import ADDRESS, Example

LANGUAGES: Final = {"curl": "Shell", "Python": "Python", "JavaScript": "JavaScript"}


def samples(method: str, path: str, example: Example) -> dict[str, str]:
    """By language."""
    for name, value in example.path.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    streams = path.endswith("/events") or (isinstance(example.body, dict) and example.body.get("stream") is True)
    written = {
        "curl": _curl(method, path, example, streams=streams),
        "Python": _python(method, path, example, streams=streams),
        "JavaScript": _javascript(method, path, example, streams=streams),
    }
    return written | dict(example.own)


def _curl(method: str, path: str, example: Example, *, streams: bool) -> str:
    verb = "" if method in ("GET", "POST") else f" -X {method}"
    words = [f"curl -sS{'N' if streams else ''}{verb} {ADDRESS}{path}"]
    words += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in _headers(example).items()]
    if example.body is not None:
        words.append(f"-d {shlex.quote(to_json(example.body, indent=2).decode())}")
    return " \\\n  ".join(words) + "\n"


def _python(method: str, path: str, example: Example, *, streams: bool) -> str:
    given = [f'"{ADDRESS}{path}"']
    if example.headers:
        given.append(f"headers={_literal(dict(example.headers))}")
    if example.body is not None:
        given.append(f"json={_literal(example.body)}")
    given.append("timeout=120")
    inner = ",\n    ".join(given)
    if not streams:
        return f"import httpx\n\nanswer = httpx.{method.lower()}(\n    {inner},\n)\nprint(answer.json())\n"
    return (
        f'import httpx\n\nwith httpx.stream(\n    "{method}",\n    {inner},\n) as answer:\n'
        "    for line in answer.iter_lines():\n        print(line)\n"
    )


def _javascript(method: str, path: str, example: Example, *, streams: bool) -> str:
    given = [f'  method: "{method}",\n'] if method != "GET" else []
    if headers := _headers(example):
        given.append(f"  headers: {to_json(headers).decode()},\n")
    if example.body is not None:
        body = to_json(example.body, indent=2).decode().replace("\n", "\n  ")
        given.append(f"  body: JSON.stringify({body}),\n")
    options = f", {{\n{''.join(given)}}}" if given else ""
    read = (
        "for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {\n  console.log(piece);\n}\n"
        if streams
        else "console.log(await answer.json());\n"
    )
    return f'const answer = await fetch("{ADDRESS}{path}"{options});\n{read}'


def _headers(example: Example) -> Mapping[str, str]:
    return {**({"content-type": JSON} if example.body is not None else {}), **example.headers}


def _literal(value: Any, indent: str = "    ") -> str:
    """Python's own, one field a line."""
    inner = indent + "    "
    match value:
        case dict():
            lines = [f'{inner}"{name}": {_literal(each, inner)},\n' for name, each in value.items()]
            return f"{{\n{''.join(lines)}{indent}}}"
        case list() if any(isinstance(each, dict) for each in value):
            return f"[\n{''.join(f'{inner}{_literal(each, inner)},' + chr(10) for each in value)}{indent}]"
        case str():
            return to_json(value).decode()
        case _:
            return repr(value)
