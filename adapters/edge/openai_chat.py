"""OpenAI's `POST /v1/chat/completions`: one choice, plain or streamed."""

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from adapters.edge import sse
from adapters.edge.door import Asked, Shape, placed
from adapters.edge.errors import error_body
from adapters.edge.facts import within
from adapters.edge.openai_fields import (
    ELSEWHERE,
    LOGPROBS,
    Effort,
    Flag,
    Temperature,
    Tokens,
    TopP,
    Whole,
    check_format,
    check_messages,
    check_said,
    check_tools,
    chosen,
    effort,
    only,
)
from adapters.edge.wishes import Wishes, request, with_preferences
from schemas.chunk import Chunk
from schemas.failure import Error
from schemas.policy import Policy
from schemas.reply import Reply
from schemas.request import Objects, Texts
from schemas.work import Usage

DONE: Final = b"data: [DONE]\n\n"


class StreamOptions(BaseModel):
    include_usage: Flag = False


class ChatCompletionRequest(Wishes):
    """What is not here is kept out: an unknown field is no error."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra={"required": ["messages"]})

    model: str | None = None
    """An alias, a model or a capability of the policy, a backend's own name, or `auto`."""
    messages: Objects = Field(min_length=1)
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stop: Texts | str | None = None
    seed: Whole | None = None
    reasoning_effort: Effort | None = None
    tools: Objects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: Flag | None = None
    response_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    """Kept with the request, and sent to nobody."""

    n: Annotated[Whole | None, only(None, 1, because="one answer a request; ask again for another")] = None
    logprobs: Annotated[Flag | None, only(None, False, because=LOGPROBS)] = None
    top_logprobs: Annotated[Whole | None, only(None, 0, because=LOGPROBS)] = None
    functions: Annotated[Any, only(None, [], because="the older form of tools is not taken: use tools")] = None
    function_call: Annotated[
        Any, only(None, "none", "auto", because="the older form of tools is not taken: use tool_choice")
    ] = None
    audio: Annotated[Any, only(None, because="no provider here speaks: leave it out")] = None
    modalities: Annotated[Any, only(None, [], ["text"], because="answers are text: leave it out")] = None
    web_search_options: Annotated[Any, only(None, because=f"searching {ELSEWHERE}")] = None


class ChatCompletions:
    """The door."""

    shape: Shape = "openai"

    def read(self, body: bytes, headers: Mapping[str, str], policy: Policy) -> Asked:
        said = ChatCompletionRequest.said(body, headers)
        check_said("messages", said.messages)
        check_messages(said.messages)
        check_tools(said.tools or ())
        check_format(said.response_format)
        capability, model = placed(said.model, said, policy)
        choice, tools = chosen(said.tool_choice, said.tools)
        streams, limit = bool(said.stream), said.max_completion_tokens
        preferences = with_preferences(
            said,
            {
                "max_tokens": said.max_tokens if limit is None else limit,
                "temperature": said.temperature,
                "top_p": said.top_p,
                "stop": said.stop,
                "seed": said.seed,
                "reasoning_effort": effort(said.reasoning_effort),
            },
        )
        asked = request(
            said, messages=said.messages, model=model, preferences=preferences, stream=streams and not said.buffered,
            tools=tools, tool_choice=choice, parallel_tool_calls=said.parallel_tool_calls,
            response_format=said.response_format, metadata=said.metadata, user=said.user,
        )  # fmt: skip
        with_usage = said.stream_options is not None and said.stream_options.include_usage
        return Asked(asked, capability, sse=streams, model=said.model or "auto", with_usage=with_usage)

    def answer(self, asked: Asked, reply: Reply) -> dict[str, Any]:
        message = reply.message
        said: dict[str, Any] = {
            "role": "assistant",
            "content": message.content if message and (message.content or not message.tool_calls) else None,
            "refusal": None,
        }
        if message and message.reasoning:
            said["reasoning_content"] = message.reasoning
        if message and message.thinking_blocks:
            said["thinking_blocks"] = message.thinking_blocks
        if message and message.tool_calls:
            said["tool_calls"] = message.tool_calls
        choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": reply.finish_reason or "stop"}
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
        if asked.with_usage:
            self._base["usage"] = None
        self._spoken = False

    def piece(self, chunk: Chunk) -> bytes:
        if chunk.model:
            self._base["model"] = chunk.model
        if not (chunk.text or chunk.reasoning or chunk.tool_call):
            return b""  # a record of thinking: the end has them all, for clients add up nothing but texts
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
        delta = _unsaid(reply) if self._spoken else {"role": "assistant", "content": "", **_unsaid(reply)}
        choice = {"index": 0, "delta": delta, "finish_reason": reply.finish_reason or "stop"}
        last = self._event([choice], llm=within(reply))
        counted = self._event([], usage=usage(reply.usage)) if self._asked.with_usage else b""
        return last + counted + DONE

    def error(self, error: Error, status: int) -> bytes:
        return sse.event(error_body(error, status, "openai"))

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return sse.event({**self._base, "choices": choices, **more})


def _unsaid(reply: Reply) -> dict[str, Any]:
    """What an answer has beside its words: a provider's own record, which it wants back with the next turn."""
    message = reply.message
    delta: dict[str, Any] = {}
    if message and message.thinking_blocks:
        delta["thinking_blocks"] = message.thinking_blocks
    marks = [
        {"index": n, "function": {"arguments": ""}, **more}
        for n, call in enumerate(message.tool_calls if message else ())
        if (more := {name: call[name] for name in call.keys() - {"id", "type", "function"}})
    ]
    return {**delta, "tool_calls": marks} if marks else delta


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
