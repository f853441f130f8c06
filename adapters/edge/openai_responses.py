"""OpenAI's `POST /v1/responses`: one answer from all that was said, plain or streamed. Nothing is kept between two."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from adapters.edge.door import Asked, Shape, placed
from adapters.edge.openai_fields import (
    ELSEWHERE,
    LOGPROBS,
    Effort,
    Flag,
    Temperature,
    Tokens,
    TopP,
    Whole,
    check_said,
    chosen,
    effort,
    only,
)
from adapters.edge.openai_input import STATELESS, choice, response_format, tools, turns
from adapters.edge.openai_output import ResponseSpeech, ended, items
from adapters.edge.wishes import Wishes, request, with_preferences
from schemas.policy import Policy
from schemas.reply import Reply
from schemas.request import Objects, Texts

BACKGROUND = "send the header `Prefer: respond-async` instead, and fetch the answer at /v1/requests/{id}"


def _no_logprobs(include: list[str] | None) -> list[str] | None:
    if any("logprobs" in each for each in include or ()):
        raise ValueError(LOGPROBS)
    return include


class TextConfig(BaseModel):
    format: dict[str, Any] | None = None


class ReasoningConfig(BaseModel):
    effort: Effort | None = None
    summary: str | None = None
    """Taken and not needed: what a model tells of its thinking is in the answer."""


class ResponseRequest(Wishes):
    """What is not here is kept out: an unknown field is no error."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str | None = None
    """An alias, a model or a capability of the policy, a backend's own name, or `auto`."""
    input: str | Objects
    """A prompt, or the whole conversation: messages, function calls and their outputs, reasoning."""
    instructions: str | None = None
    """Stands before the conversation, as the system's."""
    stream: Flag | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    tools: Objects | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: Flag | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    """Kept with the request, and sent to nobody."""

    previous_response_id: Annotated[Any, only(None, because=STATELESS)] = None
    conversation: Annotated[Any, only(None, because=STATELESS)] = None
    background: Annotated[Flag | None, only(None, False, because=BACKGROUND)] = None
    prompt: Annotated[
        Any, only(None, because=f"a prompt's template {ELSEWHERE.partition(';')[0]}: send it as input")
    ] = None
    include: Annotated[Texts | None, AfterValidator(_no_logprobs)] = None
    top_logprobs: Annotated[Whole | None, only(None, 0, because=LOGPROBS)] = None


class Responses:
    """The door."""

    shape: Shape = "openai"

    def read(self, body: bytes, headers: Mapping[str, str], policy: Policy) -> Asked:
        said = ResponseRequest.said(body, headers)
        capability, model = placed(said.model, said, policy)
        check_said("input", conversation := turns(said.instructions, said.input))
        picked, among = chosen(choice(said.tool_choice), [*tools(said.tools or ())])
        streams, form = bool(said.stream), (said.text or TextConfig()).format
        preferences = with_preferences(
            said,
            {
                "max_tokens": said.max_output_tokens,
                "temperature": said.temperature,
                "top_p": said.top_p,
                "reasoning_effort": effort((said.reasoning or ReasoningConfig()).effort),
            },
        )
        asked = request(
            said, messages=conversation, model=model, preferences=preferences,
            stream=streams and not said.buffered, tools=among, tool_choice=picked,
            parallel_tool_calls=said.parallel_tool_calls, response_format=response_format(form),
            metadata=said.metadata, user=said.user,
        )  # fmt: skip
        return Asked(asked, capability, sse=streams, model=said.model or "auto", echo=_echo(said))

    def answer(self, asked: Asked, reply: Reply) -> dict[str, Any]:
        return ended(asked, reply.request_id, reply, items(reply.request_id, reply))

    def speech(self, asked: Asked, rid: str) -> ResponseSpeech:
        return ResponseSpeech(asked, rid)


def _echo(said: ResponseRequest) -> dict[str, Any]:
    thinking = said.reasoning or ReasoningConfig()
    return {
        "instructions": said.instructions,
        "max_output_tokens": said.max_output_tokens,
        # The dialect has no other values, and its clients warn of them.
        "metadata": {name: value for name, value in (said.metadata or {}).items() if isinstance(value, str)},
        "parallel_tool_calls": said.parallel_tool_calls is not False,
        "reasoning": {"effort": thinking.effort, "summary": thinking.summary},
        "temperature": said.temperature,
        "text": {"format": (said.text or TextConfig()).format or {"type": "text"}},
        "tool_choice": said.tool_choice or "auto",
        "tools": said.tools or [],
        "top_p": said.top_p,
        "user": said.user,
    }
