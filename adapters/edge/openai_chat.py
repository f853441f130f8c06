"""OpenAI's `POST /v1/chat/completions`: one choice, plain or streamed."""

import time
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.edge import sse
from adapters.edge.door import Asked, Shape, placed
from adapters.edge.errors import error_body
from adapters.edge.facts import within
from adapters.edge.wishes import Wishes, from_headers, request, with_preferences
from schemas.chunk import Chunk
from schemas.failure import Error
from schemas.policy import Policy
from schemas.reply import Reply
from schemas.work import Usage

DONE: Final = b"data: [DONE]\n\n"
EFFORTS: Final = {"minimal": "low", "xhigh": "high"}
"""OpenAI's words for what others call otherwise."""


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatCompletionRequest(Wishes):
    """What is not here is kept out: an unknown field is no error."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra={"required": ["messages"]})

    model: str | None = None
    """An alias, a model or a capability of the policy, a backend's own name, or `auto`."""
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | str | None = None
    seed: int | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: Literal[False] | None = Field(default=None, description="Not supported.")
    top_logprobs: Literal[0] | None = Field(default=None, description="Not supported.")
    metadata: dict[str, Any] | None = None


class ChatCompletions:
    """The door."""

    shape: Shape = "openai"

    def read(self, body: bytes, headers: Mapping[str, str], policy: Policy) -> Asked:
        said = ChatCompletionRequest.model_validate_json(body)
        if given := from_headers(headers):
            said = ChatCompletionRequest.model_validate(given | said.model_dump(exclude_unset=True))
        capability, model = placed(said.model, said, policy)
        effort = said.reasoning_effort
        preferences = with_preferences(
            said,
            {
                "max_tokens": said.max_completion_tokens or said.max_tokens,
                "temperature": said.temperature,
                "top_p": said.top_p,
                "stop": said.stop,
                "seed": said.seed,
                "reasoning_effort": EFFORTS.get(effort, effort) if effort else None,
            },
        )
        asked = request(
            said, messages=said.messages, model=model, preferences=preferences,
            stream=said.stream and not said.buffered, tools=said.tools or None, tool_choice=said.tool_choice,
            parallel_tool_calls=said.parallel_tool_calls, response_format=said.response_format,
            metadata=said.metadata,
        )  # fmt: skip
        with_usage = said.stream_options is not None and said.stream_options.include_usage
        return Asked(asked, capability, sse=said.stream, model=said.model or "auto", with_usage=with_usage)

    def answer(self, asked: Asked, reply: Reply) -> dict[str, Any]:
        message = reply.message
        said: dict[str, Any] = {
            "role": "assistant",
            "content": message.content if message and (message.content or not message.tool_calls) else None,
            "refusal": None,
        }
        if message and message.reasoning:
            said["reasoning_content"] = message.reasoning
        if message and message.tool_calls:
            said["tool_calls"] = message.tool_calls
        choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": reply.finish_reason}
        return {
            "id": f"chatcmpl-{reply.request_id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": reply.model,
            "choices": [choice],
            "usage": usage(reply.usage),
        }

    def speech(self, asked: Asked, rid: str) -> "ChatSpeech":
        return ChatSpeech(asked, rid)


class ChatSpeech:
    """`chat.completion.chunk`s, and `[DONE]` after a whole answer only."""

    ping = sse.PING

    def __init__(self, asked: Asked, rid: str) -> None:
        self._asked = asked
        self._base = {
            "id": f"chatcmpl-{rid}", "object": "chat.completion.chunk", "created": int(time.time()),
            "model": asked.model,
        }  # fmt: skip
        self._spoken = False

    def piece(self, chunk: Chunk) -> bytes:
        if chunk.model:
            self._base["model"] = chunk.model
        delta: dict[str, Any] = {} if self._spoken else {"role": "assistant"}
        self._spoken = True
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if call := chunk.tool_call:
            function = {"arguments": call.arguments} if call.name is None else {
                "name": call.name, "arguments": call.arguments}  # fmt: skip
            first = {} if call.name is None else {"id": call.id, "type": "function"}
            delta["tool_calls"] = [{"index": call.index, **first, "function": function}]
        return self._event([{"index": 0, "delta": delta, "finish_reason": None}])

    def end(self, reply: Reply) -> bytes:
        delta = {} if self._spoken else {"role": "assistant", "content": ""}
        last = self._event([{"index": 0, "delta": delta, "finish_reason": reply.finish_reason}], llm=within(reply))
        counted = self._event([], usage=usage(reply.usage)) if self._asked.with_usage else b""
        return last + counted + DONE

    def error(self, error: Error, status: int) -> bytes:
        return sse.event(error_body(error, status, "openai"))

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return sse.event({**self._base, "choices": choices, **more})


def usage(counted: Usage | None) -> dict[str, Any] | None:
    if counted is None:
        return None
    return {
        "prompt_tokens": counted.tokens_in,
        "completion_tokens": counted.tokens_out,
        "total_tokens": counted.tokens_in + counted.tokens_out,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens_in},
        "completion_tokens_details": {"reasoning_tokens": counted.reasoning_tokens_out},
    }
