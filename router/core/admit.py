"""The first stage: a message becomes a request, or a refusal that says what would be right.

Whatever arrives, it gets a client and a request id that are tokens, so that it can be answered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from schemas import headers as h
from schemas.decision import Refuse
from schemas.failure import ErrorType
from schemas.policy import Limits
from schemas.request import LlmRequest, request_hash
from subjects import Request, is_token

ANONYMOUS = "anonymous"
BOM = b"\xef\xbb\xbf"
SHOWN_ERRORS = 3


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


def admit(subject: Request, body: bytes, headers: Mapping[str, str], seq: int, limits: Limits) -> Asked:
    """Read a message of LLM_REQUESTS."""
    request: LlmRequest | None = None
    refusal: Refuse | None = None
    unreadable = False
    if len(body) > limits.max_body_bytes:
        refusal = _refuse(
            f"the body has {len(body)} bytes, at most {limits.max_body_bytes} are taken", ErrorType.PAYLOAD_TOO_LARGE
        )
    else:
        try:
            request = _read(body)
        except ValidationError as error:
            refusal = _refuse(_explain(error))
            unreadable = any(e["type"] == "json_invalid" for e in error.errors(include_url=False, include_input=False))
        except ValueError as error:
            refusal, unreadable = _refuse(str(error)), True
    client, rid, wrong = _names(subject, headers, request, seq)
    refusal = refusal or wrong
    if refusal is None and request is not None:
        refusal = _out_of_bounds(request, limits)
    return Asked(
        client=client,
        rid=rid,
        request_hash=request_hash(subject.capability, body),
        capability=subject.capability,
        seq=seq,
        request=None if refusal else request,
        refusal=refusal,
        unreadable=unreadable,
        traceparent=headers.get(h.TRACEPARENT),
    )


def _read(body: bytes) -> LlmRequest:
    """JSON when it looks like it, else a plain prompt."""
    body = body.removeprefix(BOM)
    if body[:64].lstrip()[:1] in (b"{", b"["):
        return LlmRequest.decode(body)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the body is neither JSON nor UTF-8 text: {error.reason} at byte {error.start}") from None
    return LlmRequest(prompt=text)


def _names(
    subject: Request, headers: Mapping[str, str], request: LlmRequest | None, seq: int
) -> tuple[str, str, Refuse | None]:
    """Who asks, under which id; an id that is no token is refused and `seq-<n>` stands in for it."""
    client = subject.client or headers.get(h.CLIENT) or headers.get(h.AGENT) or (request and request.agent) or ANONYMOUS
    rid = headers.get(h.REQUEST_ID) or (request and request.request_id)
    if rid is None:
        # A message id is the client's own string: it serves as id when it can, and is no error when it cannot.
        msg_id = headers.get(h.MSG_ID)
        rid = msg_id if is_token(msg_id) else f"seq-{seq}"
    wrong = None
    if not is_token(client):
        client, wrong = ANONYMOUS, _refuse("client or agent must be 1 to 64 of A-Z a-z 0-9 _ -")
    if not is_token(rid):
        rid, wrong = f"seq-{seq}", _refuse("the request id must be 1 to 64 of A-Z a-z 0-9 _ -")
    return client, rid, wrong


def _out_of_bounds(request: LlmRequest, limits: Limits) -> Refuse | None:
    if request.messages and len(request.messages) > limits.max_messages:
        return _refuse(f"{len(request.messages)} messages, at most {limits.max_messages} are taken")
    if any("\x00" in text for text in _texts(request)):
        return _refuse("a NUL character stands in the text; remove it")
    loose = (request.tools, request.response_format, request.metadata, request.model_extra)
    if any(_depth(value) > limits.max_depth for value in loose if value):
        return _refuse(f"the body nests deeper than {limits.max_depth} levels")
    return None


def _texts(request: LlmRequest) -> Iterator[str]:
    yield from (text for text in (request.prompt, request.context) if text)
    yield from (message.text() for message in request.messages or ())


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
