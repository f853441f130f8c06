"""What `/docs` says about each door, with examples; the tests run every one as written.

A door's entry has the key "METHOD /path", the path with its parameters in braces. An example needs no more than the
body it sends: its lines in curl, Python and JavaScript are written by `samples.py`, unless it brings its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final

from pydantic_core import from_json

ADDRESS: Final = "http://127.0.0.1:8484"
"""In the examples as written; the page puts the address of its own edge here."""


@dataclass(frozen=True, slots=True)
class Example:
    """One way to use a door."""

    title: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)
    """The values of the path's parameters."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Lines that are better than the written ones, by language: an SDK's."""


@dataclass(frozen=True, slots=True)
class About:
    """One door."""

    summary: str
    text: str
    examples: tuple[Example, ...]


ASKED: Final = {"model": "auto", "messages": [{"role": "user", "content": "Describe the harbour in one sentence."}]}
OPENAI_PYTHON: Final = f"""\
from openai import OpenAI

client = OpenAI(base_url="{ADDRESS}/v1", api_key="none")
"""
ANTHROPIC_PYTHON: Final = f"""\
from anthropic import Anthropic

client = Anthropic(base_url="{ADDRESS}", api_key="none")
"""
ASKED_FOR_LATER: Final = Example(
    "Ask now, fetch later",
    ASKED,
    {"Idempotency-Key": "harbour-1", "Prefer": "respond-async"},
)

ANSWERS: Final[Mapping[str, Any]] = from_json(files("adapters.edge").joinpath("static/answers.json").read_bytes())
"""What comes back to a door's first example."""
ABOUT: Final[Mapping[str, About]] = {
    "POST /v1/chat/completions": About(
        "Chat completions",
        "OpenAI's chat completions: one choice, plain or streamed. `model` is an alias, a model or a capability of the "
        "policy, or `auto`. A stream that breaks off ends with an error event and without `[DONE]`.",
        (
            Example(
                "An answer",
                ASKED,
                own={
                    "Python": OPENAI_PYTHON
                    + """answer = client.chat.completions.create(
    model="auto",
    messages=[{"role": "user", "content": "Describe the harbour in one sentence."}],
)
print(answer.choices[0].message.content)
"""
                },
            ),
            Example(
                "A stream",
                {**ASKED, "stream": True},
                own={
                    "Python": OPENAI_PYTHON
                    + """stream = client.chat.completions.create(
    model="auto",
    messages=[{"role": "user", "content": "Describe the harbour in one sentence."}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
"""
                },
            ),
            Example(
                "With wishes of the router's",
                {**ASKED, "urgency": "high", "deadline_ms": 20000, "preferences": {"strategy": "cost"}},
                own={
                    "Python": OPENAI_PYTHON
                    + """answer = client.chat.completions.with_raw_response.create(
    model="auto",
    messages=[{"role": "user", "content": "Describe the harbour in one sentence."}],
    extra_body={"urgency": "high", "deadline_ms": 20000, "preferences": {"strategy": "cost"}},
)
print(answer.headers["x-llm-model"], answer.headers.get("x-llm-cost-usd"))
print(answer.parse().choices[0].message.content)
"""
                },
            ),
            ASKED_FOR_LATER,
        ),
    ),
    "POST /v1/responses": About(
        "Responses",
        "OpenAI's responses: text and tools, plain or as its streaming events.",
        (
            Example(
                "An answer",
                {"model": "auto", "input": "Describe the harbour in one sentence."},
                own={
                    "Python": OPENAI_PYTHON
                    + """answer = client.responses.create(model="auto", input="Describe the harbour in one sentence.")
print(answer.output_text)
"""
                },
            ),
            Example("A stream", {"model": "auto", "input": "Describe the harbour in one sentence.", "stream": True}),
        ),
    ),
    "POST /v1/embeddings": About(
        "Embeddings",
        "A vector for each text, of a model that makes them.",
        (Example("Two texts", {"model": "auto", "input": ["the harbour", "항구"]}),),
    ),
    "GET /": About("Is anybody at home?", "A line of text; `HEAD` says the same without it.", ()),
    "HEAD /": About("Is anybody at home, without words", "What some clients ask first.", ()),
    "GET /v1/models": About("Models", "All that `model` may name.", (Example("All of them"),)),
    "GET /v1/models/{model}": About(
        "One model", "What it can and costs.", (Example("The one that is chosen for you", path={"model": "auto"}),)
    ),
    "POST /v1/messages": About(
        "Messages",
        "Anthropic's messages, plain or streamed, with any model behind them: Claude Code works through this door.",
        (
            Example(
                "An answer",
                {**ASKED, "max_tokens": 200},
                own={
                    "Python": ANTHROPIC_PYTHON
                    + """answer = client.messages.create(
    model="auto",
    max_tokens=200,
    messages=[{"role": "user", "content": "Describe the harbour in one sentence."}],
)
print(answer.content[0].text)
"""
                },
            ),
            Example("A stream", {**ASKED, "max_tokens": 200, "stream": True}),
        ),
    ),
    "POST /v1/messages/count_tokens": About(
        "Count tokens", "An estimate of what a request's input costs.", (Example("A question", ASKED),)
    ),
    "POST /route": About(
        "Route a prompt",
        "A prompt and what kind of task it is; the router finds who answers.",
        (Example("A task", {"prompt": "Write a function that reverses a list.", "task_type": "code"}),),
    ),
    "POST /architect": About(
        "Ask the architect", "As `/route`, of this role.", (Example("A design", {"prompt": "Design a login."}),)
    ),
    "POST /coder": About(
        "Ask the coder", "As `/route`, of this role.", (Example("Code", {"prompt": "Write a login form."}),)
    ),
    "POST /reviewer": About(
        "Ask the reviewer",
        "As `/route`, of this role.",
        (Example("A review", {"prompt": "Review: def login(): pass"}),),
    ),
    "POST /batch": About(
        "Several at once",
        "A list in, a list out in the same order; one that fails leaves the others alone.",
        (Example("Two prompts", [{"prompt": "Name a harbour."}, {"prompt": "Name a ship."}]),),
    ),
    "POST /api/chat": About(
        "An agent's message",
        "What an agent asks; who answered and what it cost comes with the answer.",
        (Example("A message", {"agent": "npc-ai", "task": "dialogue", "message": "마법사에게 인사해 줘"}),),
    ),
    "GET /health": About("Health", "The bus, the router, the nodes and their backends.", (Example("Now"),)),
    "GET /models": About("Models and rules", "Roles, memory and the rules of routing.", (Example("All of them"),)),
    "GET /memory": About("Memory", "What each machine holds.", (Example("Now"),)),
    "GET /v1/requests": About("Your requests", "Newest first, in pages.", (Example("The newest"),)),
    "GET /v1/requests/{rid}": About(
        "How a request stands",
        "State, place in line, decision, attempts, cost and the answer.",
        (Example("One that was asked for later", path={"rid": "harbour-1"}),),
    ),
    "GET /v1/requests/{rid}/events": About(
        "A request's events",
        "Server-sent, from the beginning or behind `Last-Event-ID`; any number may watch, at any edge.",
        (Example("All of them", path={"rid": "harbour-1"}),),
    ),
    "DELETE /v1/requests/{rid}": About(
        "Cancel a request",
        "In whatever state it is; an answer that is there stays.",
        (Example("One that was asked for later", path={"rid": "harbour-1"}),),
    ),
}
