"""The first stage: a message becomes a request, or a refusal that says what would be right.

Whatever arrives, it gets a client and a request id that are tokens, so that it can be answered.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import SchemaValidator, core_schema, from_json

from schemas import headers as h
from schemas.decision import Refuse
from schemas.failure import ErrorType
from schemas.policy import Limits
from schemas.request import LlmRequest, request_hash
from schemas.values import has_more_values
from subjects import Request, is_token

ANONYMOUS = "anonymous"
BOM = b"\xef\xbb\xbf"
SHOWN_ERRORS = 3
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
"""W3C trace context; anything else is dropped."""
_NAME = core_schema.with_default_schema(core_schema.str_schema(), on_error="omit")
_NAMES = SchemaValidator(
    core_schema.typed_dict_schema(
        {name: core_schema.typed_dict_field(_NAME, required=False) for name in ("request_id", "agent")}
    )
)
"""Reads these and builds nothing of the rest."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with the names it is answered under; `refusal` instead of `request` when it cannot be read."""

    client: str
    rid: str
    request_hash: str
    capability: str
    seq: int
    request: LlmRequest | None = None
    refusal: Refuse | None = None
    unreadable: bool = False
    """True when not even a body could be made out: it is a dead letter too."""
    traceparent: str | None = None
    models: frozenset[str] | None = None
    """The only ones that may answer; None: any."""


def admit(subject: Request, body: bytes, headers: Mapping[str, str], seq: int, limits: Limits) -> Asked:
    """Read a message of LLM_REQUESTS."""
    named: Mapping[str, Any] = {}
    request: LlmRequest | None = None
    refusal: Refuse | None = None
    unreadable = False
    said = body.removeprefix(BOM)
    if len(body) > limits.max_body_bytes:
        refusal = _refuse(
            f"the body has {len(body)} bytes, at most {limits.max_body_bytes} are taken", ErrorType.PAYLOAD_TOO_LARGE
        )
    elif _begins(said) == b"{" and has_more_values(said, limits.max_values):
        refusal = _refuse(f"the body has over {limits.max_values} JSON values; send fewer, or data as text in a string")
        named, unreadable = _names_within(said)
    else:
        try:
            request = _read(said)
            refusal = _out_of_bounds(request, said, limits)
        except ValidationError as error:
            refusal = _refuse(_explain(error))
            named, unreadable = _names_within(said)
        except ValueError as error:
            refusal, unreadable = _refuse(str(error)), True
    if request is not None:
        named = {"request_id": request.request_id, "agent": request.agent}
    client, rid, wrong = _names(subject, headers, named, seq)
    refusal = refusal or wrong
    if request is not None and request.agent is None and (agent := headers.get(h.AGENT)):
        request = request.model_copy(update={"agent": agent})
    if request is not None and (budget := headers.get(h.BUDGET_USD)) is not None:
        within = _within_budget(request, budget)
        request, refusal = (request, refusal or within) if isinstance(within, Refuse) else (within, refusal)
    return Asked(
        client=client,
        rid=rid,
        request_hash=request_hash(subject.capability, body),
        capability=subject.capability,
        seq=seq,
        request=None if refusal else request,
        refusal=refusal,
        unreadable=unreadable,
        models=None if (models := headers.get(h.ALLOWED_MODELS)) is None else frozenset(models.split(",")),
        traceparent=trace if _TRACEPARENT.match(trace := headers.get(h.TRACEPARENT, "")) else None,
    )


def _read(body: bytes) -> LlmRequest:
    """JSON when it looks like it, else a plain prompt. Raises pydantic.ValidationError, ValueError."""
    first = _begins(body)
    if first == b"{":
        return LlmRequest.decode(body)
    if first == b"[":
        _check_no_json(body)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the body is neither JSON nor UTF-8 text: {error.reason} at byte {error.start}") from None
    return LlmRequest(prompt=text)


def _within_budget(request: LlmRequest, budget: str) -> LlmRequest | Refuse:
    """The request with the lower of two bounds: its own, and that of who let it in."""
    try:
        usd = float(budget)
    except ValueError:
        usd = math.nan
    if not 0 <= usd < math.inf:
        return _refuse(f"the header {h.BUDGET_USD} must be a number of US dollars, 0 or more")
    own = request.constraints.max_cost_usd
    bound = request.constraints.model_copy(update={"max_cost_usd": usd if own is None else min(own, usd)})
    return request.model_copy(update={"constraints": bound})


def _check_no_json(body: bytes) -> None:
    """`[GM] greets you` is a prompt, `[1, 2]` is not. Raises pydantic.ValidationError."""
    try:
        _NAMES.validate_json(body)
    except ValidationError as error:
        if not _is_no_json(error) or "recursion" in str(error):
            raise


def _names_within(body: bytes) -> tuple[Mapping[str, Any], bool]:
    """The names that a refused body gives itself, and whether not even JSON could be made out."""
    try:
        return _NAMES.validate_json(body), False
    except ValidationError as error:
        return {}, _is_no_json(error) and _begins(body) in (b"{", b"[")


def _is_no_json(error: ValidationError) -> bool:
    return error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid"


def _begins(body: bytes) -> bytes:
    return body[:64].lstrip()[:1]


def _names(
    subject: Request, headers: Mapping[str, str], body: Mapping[str, Any], seq: int
) -> tuple[str, str, Refuse | None]:
    """Who asks, under which id; an id that cannot be is refused and `seq-<n>` stands in for it."""
    client = subject.client or headers.get(h.CLIENT) or headers.get(h.AGENT) or body.get("agent") or ANONYMOUS
    own = f"seq-{seq}"
    rid = headers.get(h.REQUEST_ID) or body.get("request_id")
    if rid is None:
        # A message id is the client's own string: it serves as id when it can, and is no error when it cannot.
        msg_id = headers.get(h.MSG_ID)
        rid = msg_id if is_token(msg_id) and not _ours(msg_id) else own
    wrong = None
    if not is_token(client):
        client, wrong = ANONYMOUS, _refuse("client or agent must be 1 to 64 of A-Z a-z 0-9 _ -")
    if not is_token(rid):
        rid, wrong = own, _refuse("the request id must be 1 to 64 of A-Z a-z 0-9 _ -")
    elif rid != own and _ours(rid):
        rid, wrong = own, _refuse("request ids of the form seq-<number> are given to requests without one")
    return client, rid, wrong


def _ours(rid: str) -> bool:
    return rid.startswith("seq-") and rid[4:].isdigit()


def _out_of_bounds(request: LlmRequest, body: bytes, limits: Limits) -> Refuse | None:
    if request.messages and len(request.messages) > limits.max_messages:
        return _refuse(f"{len(request.messages)} messages, at most {limits.max_messages} are taken")
    if any("\x00" in text for text in _texts(request)):
        return _refuse("a NUL character stands in the text; remove it")
    # It cannot nest deeper than it has opening brackets, and most requests have few.
    brackets = body.count(b"{") + body.count(b"[")
    if brackets > limits.max_depth and _begins(body) == b"{" and _depth(from_json(body)) > limits.max_depth:
        return _refuse(f"the body nests deeper than {limits.max_depth} levels")
    return None


def _texts(request: LlmRequest) -> Iterator[str]:
    yield from (text for text in (request.prompt, request.context) if text)
    yield from (message.text() for message in request.messages or ())
    yield from request.embed or ()


def _depth(value: Any) -> int:
    """Levels of nesting, without recursion."""
    depth, level = 0, [value]
    while level := [
        child
        for item in level
        if isinstance(item, dict | list)
        for child in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
    return depth


def _refuse(message: str, error: ErrorType = ErrorType.BAD_REQUEST) -> Refuse:
    return Refuse(error=error, message=message)


def _explain(error: ValidationError) -> str:
    """What is wrong where, without repeating what was sent: it may be secret."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [
        f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg'].removeprefix('Value error, ')}"
        for e in found[:SHOWN_ERRORS]
    ]
    more = f" (and {len(found) - SHOWN_ERRORS} more)" if len(found) > SHOWN_ERRORS else ""
    return "; ".join(lines) + more
