"""What providers over HTTP share: one pooled client each, with a limit to everything it waits for."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
from pydantic import SecretStr
from pydantic_core import from_json, to_json

from adapters.providers.failures import kind_of, malformed, retry_after_ms, sentence
from adapters.providers.keys import Keys
from adapters.providers.pool import Transport
from adapters.providers.reading import LINE_BYTES, Reading, read
from router.errors import AttemptError
from router.ports import Call
from schemas.failure import Failure, FailureKind
from schemas.outcome import Answer

CONNECT_S: Final = 5.0
PROBE_S: Final = 5.0
REFUSAL_S: Final = 2.0
"""How long the body of a refusal may take; the status alone classifies it well enough."""
UPSTREAM_CHARS: Final = 4096
MESSAGE_CHARS: Final = 400

Remedies = Mapping[int, str]
"""What to do about a status, for the one who reads the error."""
NO_REMEDIES: Final[Remedies] = {}
NO_HEADERS: Final[Mapping[str, str]] = {}
OWN_HEADERS: Final = (
    ("Accept", "*/*"), ("Accept-Encoding", "identity"), ("Connection", "keep-alive"),
    ("Content-Type", "application/json"), ("User-Agent", f"python-httpx/{httpx.__version__}"),
)  # fmt: skip
PATIENCE: Final = {"timeout": {"connect": CONNECT_S, "read": None, "write": None, "pool": None}}
_DATED: Final = re.compile(r"-\d{8}$")

# Below that they write down each request, and word for word what upstreams say, a quoted key too.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Upstream:
    """The connections to one server, and what its failures mean."""

    def __init__(
        self, url: str | None, secrets: Sequence[SecretStr] = (), *, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        parsed = httpx.URL(url or "")
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ValueError("a provider needs a url like http://127.0.0.1:11434")
        self.host = parsed.host
        self.name = parsed.netloc.decode()
        self._secrets = secrets
        for at, secret in enumerate(secrets, start=1):
            if not _fits_a_header(secret):
                raise ValueError(f"key {at} for {self.name} is empty or has characters that no header may hold")
        # Asked by itself, without httpx's client, a transport follows no redirect and knows no proxy, cookie or .netrc,
        # each of which could send a key somewhere else; and a call costs half. How many calls run is bounded by the
        # executor's slots. Reads have no limit here: `stream` knows better what it is waiting for.
        self._transport = Transport(
            httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30)
        )
        self._url = parsed
        self._urls: dict[str, httpx.URL] = {}
        self._headers = [*OWN_HEADERS, *headers.items()]

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def stream(
        self, path: str, body: Mapping[str, Any], call: Call, reading: Reading, *, auth: httpx.Auth | None = None,
        remedies: Remedies = NO_REMEDIES,
    ) -> Answer:  # fmt: skip
        """POST `body` and let `reading` have the answer line by line. Raises AttemptError."""
        content = to_json(body, exclude_none=True, inf_nan_mode="null")
        failure: Failure | None = None
        answered = False
        try:
            async with (
                asyncio.timeout(call.first_token_ms / 1000) as patience,
                self._asked("POST", path, content, auth) as response,
            ):
                answered = response.status_code == httpx.codes.OK
                if answered:
                    await read(response, reading, patience, call.idle_ms / 1000)
                else:
                    failure = await self._refusal(response, remedies)
        except TimeoutError:
            failure = self._late(call, reading)
        except httpx.HTTPError as error:
            failure = self._broken(error, answered=answered)
        except AttemptError as error:
            failure = error.failure
        if failure is None or reading.complete:
            try:
                return reading.answer()
            except AttemptError as error:
                failure = error.failure
        # Raised out here, the error carries no context: an httpx error holds the request, and with it the key.
        failure = self._fit_to_tell(failure)
        raise AttemptError(failure)

    async def chat(
        self, path: str, body: Mapping[str, Any], call: Call, reading: Callable[[], Reading], keys: Keys
    ) -> Answer:
        """`stream` with the account's keys, whichever of them serves. Raises AttemptError."""
        if keys.missing:
            raise AttemptError.of(FailureKind.AUTH, self._no_key(keys))
        check = f"check {keys.names}" if keys.names else "check its key"
        remedies = dict.fromkeys((401, 402, 403), check)
        return await keys.using(lambda auth: self.stream(path, body, call, reading(), auth=auth, remedies=remedies))

    async def offers(
        self, models: Collection[str], path: str, items: str, name: str, keys: Keys
    ) -> dict[str, str | None]:
        """A probe: which of `models` the server lists at `path`. Raises AttemptError when it cannot be reached."""
        if keys.missing:
            return dict.fromkeys(models, self._no_key(keys))
        try:
            listed = await keys.using(lambda auth: self.listed(path, items, name, auth=auth))
        except AttemptError as error:
            if error.failure.kind is FailureKind.AUTH:
                return dict.fromkeys(models, f"{error.failure.message}; check {keys.names or 'its key'}")
            if error.failure.status != 404:
                raise
            return dict.fromkeys(models)  # it keeps no list: a call will tell
        offered = {each.removeprefix("models/") for each in listed}  # which Gemini writes before every name
        offered |= {_DATED.sub("", each) for each in offered}  # Anthropic lists dated names, and knows them without
        return {
            model: None if model in offered else f"{self.name} does not offer {model}: correct `backend`"
            for model in models
        }

    def _no_key(self, keys: Keys) -> str:
        return f"no key for {self.name}: set {keys.names}"

    async def listed(self, path: str, items: str, name: str, *, auth: httpx.Auth | None = None) -> set[str]:
        """The `name` of each of the `items` in a page, for probes. Raises AttemptError."""
        body = await self.fetch("GET", path, auth=auth)
        try:
            return {str(item[name]) for item in from_json(body)[items]}
        except (ValueError, KeyError, TypeError):
            failure = malformed(f"{self.name}{path} is no list of {items}: is the url right?", body).failure
        failure = self._fit_to_tell(failure)
        raise AttemptError(failure)

    async def fetch(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, auth: httpx.Auth | None = None,
        within_s: float = PROBE_S, remedies: Remedies = NO_REMEDIES,
    ) -> bytes:  # fmt: skip
        """A page, or the answer to a `body` that does not stream; cancelled it hangs up. Raises AttemptError."""
        content = None if body is None else to_json(body)
        page = bytearray()
        failure: Failure | None = None
        try:
            async with (
                asyncio.timeout(within_s),
                self._asked(method, path, content, auth) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    failure = await self._refusal(response, remedies)
                else:
                    async for data in response.aiter_bytes():
                        page += data
                        if len(page) > LINE_BYTES:
                            raise AttemptError.of(FailureKind.MALFORMED, f"{self.name}{path} does not end")
        except TimeoutError:
            failure = Failure(kind=FailureKind.SILENCE, message=f"{self.name} did not answer within {within_s:g} s")
        except httpx.HTTPError as error:
            failure = self._broken(error, answered=False)
        if failure is None:
            return bytes(page)
        failure = self._fit_to_tell(failure)
        raise AttemptError(failure)

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, content: bytes | None, auth: httpx.Auth | None
    ) -> AsyncIterator[httpx.Response]:
        """Raises httpx.HTTPError."""
        if (url := self._urls.get(path)) is None:
            end = httpx.URL(path).raw_path.lstrip(b"/")
            url = self._urls[path] = self._url.copy_with(raw_path=self._url.raw_path.rstrip(b"/") + b"/" + end)
        request = httpx.Request(method, url, headers=self._headers, content=content, extensions=PATIENCE)
        if auth is not None:
            request = next(auth.sync_auth_flow(request))
        response = await self._transport.handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def _refusal(self, response: httpx.Response, remedies: Remedies) -> Failure:
        body = bytearray()
        try:
            async with asyncio.timeout(REFUSAL_S):
                async for data in response.aiter_bytes():
                    body += data
                    if len(body) > 4 * UPSTREAM_CHARS:
                        break
        except (TimeoutError, httpx.HTTPError):
            pass  # the status is there
        status = response.status_code
        text = body.decode(errors="replace")
        kind = kind_of(status, text)
        remedy = remedies.get(status) or (remedies.get(401) if kind is FailureKind.AUTH else None)
        said = sentence(text) or response.reason_phrase
        return Failure(
            kind=kind,
            message=f"{self.name} answered {status}: {said}" + (f"; {remedy}" if remedy else ""),
            status=status,
            retry_after_ms=retry_after_ms(response.headers, text),
            upstream=text or None,
        )

    def _late(self, call: Call, reading: Reading) -> Failure:
        if reading.pieces:
            return Failure(
                kind=FailureKind.INTERRUPTED, message=f"{self.name} fell silent for {call.idle_ms} ms within its answer"
            )
        return Failure(kind=FailureKind.SILENCE, message=f"{self.name} said nothing for {call.first_token_ms} ms")

    def _broken(self, error: httpx.HTTPError, *, answered: bool) -> Failure:
        if isinstance(error, httpx.DecodingError):
            kind = FailureKind.MALFORMED
        else:
            kind = FailureKind.INTERRUPTED if answered else FailureKind.CONNECTION
        what = "broke off its answer" if answered else "cannot be reached"
        why = str(error) or type(error).__name__
        return Failure(kind=kind, message=f"{self.name} {what}: {why}")

    def _fit_to_tell(self, failure: Failure) -> Failure:
        """Without keys, which upstreams like to quote, then cut to size: the other way round half a key could stay."""
        told = {"message": failure.message, "upstream": failure.upstream or ""}
        for secret in self._secrets:
            told = {name: text.replace(secret.get_secret_value(), "[key]") for name, text in told.items()}
        cut = {"message": told["message"][:MESSAGE_CHARS], "upstream": told["upstream"][:UPSTREAM_CHARS] or None}
        return failure.model_copy(update=cut)


def _fits_a_header(key: SecretStr) -> bool:
    text = key.get_secret_value()
    return text.isascii() and text.isprintable() and text.strip() == text != ""
