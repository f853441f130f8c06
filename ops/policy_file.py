"""Reads a policy from YAML, and says of everything wrong in it where it stands, what it is and what would be right."""

import json
import re
from collections.abc import Iterator
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from yaml.reader import Reader

from router.core.guardrails import GUARDRAILS
from schemas.policy import Policy
from schemas.policy_problems import one_of, problems

MAX_CHARS = 250_000
"""Fits a message of 1 MiB, a broker's default, whatever the characters."""
MAX_NODES = 20_000
MAX_DEPTH = 16
"""A policy is six levels deep; aliases must not make a bomb of it."""

Path = tuple[str | int, ...]
Place = tuple[int, int]
"""Line and column, from 1."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# YAML 1.2: only these are not text. In 1.1 `off` is false, `1:30` is ninety and `010` is eight.
_INT = re.compile(r"[-+]?[0-9]{1,18}\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,4})?\Z")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}

_TOP: Path = ()
_REMEDIES = {
    "bool_type": "true or false",
    "decimal_parsing": "a number",
    "decimal_type": "a number",
    "dict_type": "a mapping: `name: value`, one a line",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number, without quotes",
    "model_type": "a mapping: `field: value`, one a line",
    "string_pattern_mismatch": "1 to 64 of A-Z a-z 0-9 _ -",
    "string_type": "text; numbers, true and false in quotes",
    "too_short": "at least one entry",
    "tuple_type": "a list: `[first, second]`",
}
_SYNTAX_REMEDIES = {
    "cannot start any token": "indent with spaces, and put text that begins with a special character in quotes",
    "mapping values are not allowed": "put text that contains `: ` in quotes, or correct the indentation",
    "another document": "one document per file: remove the `---`",
    "undefined alias": "define the anchor (&name) above its first use",
}


class PolicyProblem(NamedTuple):
    """One thing wrong in a policy."""

    file: str
    line: int
    column: int
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.where}: {self.what}\n  remedy: {self.remedy}"


class PolicyError(Exception):
    """A policy that must not be used, with all that is wrong in it."""

    def __init__(self, found: tuple[PolicyProblem, ...]) -> None:
        super().__init__(found)
        self.problems = found

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.problems))


def load_policy(text: str, name: str) -> Policy:
    """The policy in `text`; `name` is the file that errors name. Raises PolicyError."""
    source = _Source(name)
    value = source.read(text)
    try:
        # Through JSON, because strict JSON takes lists for tuples yet refuses "4" for 4 and true for 1.
        policy = Policy.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise PolicyError(_sorted(_explain(detail, source) for detail in error.errors(include_url=False))) from None
    if found := tuple(problems(policy, frozenset(GUARDRAILS))):
        raise PolicyError(_sorted(source.problem(each.where, each.what, each.remedy) for each in found))
    return policy


class _Source:
    """One YAML text: its value as JSON would have it, and where each part of it stands."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.keys: dict[Path, Place] = {}
        self.places: dict[Path, Place] = {_TOP: (1, 1)}
        self.nodes = 0

    def read(self, text: str) -> object:
        """What the text says. Raises PolicyError for what is no YAML, or more of it than a policy needs."""
        if len(text) > MAX_CHARS:
            raise self.refused((1, 1), f"has {len(text)} characters", f"a policy has at most {MAX_CHARS}")
        if odd := Reader.NON_PRINTABLE.search(text):
            before = text[: odd.start()].split("\n")
            place = (len(before), len(before[-1]) + 1)
            raise self.refused(place, f"contains the character {odd.group()!a}", "remove it")
        try:
            self._check_events(text)
            root = yaml.compose(text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from None
        return None if root is None else self._value(root, _TOP)

    def problem(self, path: Path, what: str, remedy: str) -> PolicyProblem:
        """A problem at `path`, or at the nearest thing above it that stands in the file."""
        known = next(path[:end] for end in range(len(path), -1, -1) if path[:end] in self.places)
        return PolicyProblem(self.file, *self.places[known], _dotted(path), what, remedy)

    def refused(self, place: Place, what: str, remedy: str, path: Path = _TOP) -> PolicyError:
        return PolicyError((PolicyProblem(self.file, *place, _dotted(path), what, remedy),))

    def _check_events(self, text: str) -> None:
        # Before composing, which recurses: events come one by one whatever the depth.
        depth = 0
        for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or count > MAX_NODES:
                raise self._too_much(_place(event))
            if tag := getattr(event, "tag", None):
                raise self.refused(_place(event), f"the tag {tag} is not allowed", "leave it out")

    def _too_much(self, place: Place) -> PolicyError:
        limits = f"at most {MAX_NODES} values, {MAX_DEPTH} levels deep, aliases written out"
        return self.refused(place, "more than a policy can be", limits)

    def _value(self, node: yaml.Node, path: Path) -> object:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise self._too_much(_place(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        self.places.setdefault(path, _place(node))
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        return [self._value(item, (*path, at)) for at, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        self.places.setdefault(path, _place(node))
        result: dict[str, object] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.refused(_place(key), "a key that is no text", "a name before the colon", path)
            name = str(key.value)
            here = (*path, name)
            if name == "<<":
                raise self.refused(_place(key), "merge keys are not supported", "write the fields out", here)
            if name in result:
                first = self.keys[here][0]
                raise self.refused(_place(key), f"stands here again, first on line {first}", "keep one of them", here)
            self.keys[here] = _place(key)
            # A block begins on the line below its key, where nobody looks for it.
            self.places[here] = _place(child if isinstance(child, yaml.ScalarNode) else key)
            result[name] = self._value(child, here)
        return result

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> PolicyError:
        what = error.problem or error.context or "not YAML"
        mark = error.problem_mark or error.context_mark
        context = f" ({error.context})" if error.context and error.context != what else ""
        remedy = next((cure for part, cure in _SYNTAX_REMEDIES.items() if part in what), None)
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return self.refused(
            place, what + context, remedy or "correct the indentation, quotes or brackets here or above"
        )


def _place(part: Any) -> Place:
    return part.start_mark.line + 1, part.start_mark.column + 1


def _scalar(node: yaml.ScalarNode) -> object:
    text = str(node.value)
    if node.style:
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.match(text):
        return int(text)
    return float(text) if _FLOAT.match(text) else text


def _explain(detail: ErrorDetails, source: _Source) -> PolicyProblem:
    """Pydantic's finding in the words of the file."""
    path, kind = detail["loc"], detail["type"]
    if path and path[-1] == "[key]":
        path = path[:-1]
        found = source.problem(path, f"{path[-1]!r} cannot be a name", _REMEDIES["string_pattern_mismatch"])
        return _moved(found, source.keys.get(path))
    if kind == "extra_forbidden":
        found = source.problem(path, f"unknown field {path[-1]!r}", one_of(str(path[-1]), _fields(path[:-1])))
        return _moved(found, source.keys.get(path))
    if kind == "missing":
        return source.problem(path[:-1], f"the field {path[-1]!r} is missing", f"add `{path[-1]}: ...`")
    if kind == "literal_error":
        remedy = one_of(
            str(detail["input"]), [word.strip("'") for word in re.split(", | or ", detail["ctx"]["expected"])]
        )
    else:
        remedy = _REMEDIES.get(kind) or detail["msg"].removeprefix("Input should be ")
    return source.problem(path, f"cannot be {_shown(detail['input'])}", remedy)


def _moved(found: PolicyProblem, place: Place | None) -> PolicyProblem:
    return found._replace(line=place[0], column=place[1]) if place else found


def _fields(path: Path) -> tuple[str, ...]:
    """The fields that the part of a policy at `path` may have."""
    kind: Any = Policy
    for step in path:
        kind = kind.model_fields[step].annotation if hasattr(kind, "model_fields") else get_args(kind)[1]
        if get_origin(kind) is UnionType:
            kind = get_args(kind)[0]
    return tuple(kind.model_fields)


def _dotted(path: Path) -> str:
    joined = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return joined.removeprefix(".") or "policy"


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return ("a " if value else "an empty ") + ("mapping" if isinstance(value, dict) else "list")
    if value is None:
        return "empty"
    return json.dumps(value, ensure_ascii=False)[:80]


def _sorted(found: Iterator[PolicyProblem]) -> tuple[PolicyProblem, ...]:
    """In the order of the file. What anchors share stands there once, and is told once."""
    once: dict[tuple[int, int, str, str], PolicyProblem] = {}
    for each in found:
        once.setdefault((each.line, each.column, each.where.rpartition(".")[2], each.what), each)
    return tuple(sorted(once.values(), key=lambda each: (each.line, each.column)))
