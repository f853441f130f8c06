"""How many tokens a text will be, before any tokenizer has seen it."""

from collections.abc import Iterable, Iterator

from pydantic_core import to_json

from schemas.request import ChatMessage, LlmRequest

BYTES_PER_TOKEN = 4
"""Close for English (4 letters a token) and for Korean (3 bytes a syllable, about 1.3 syllables a token)."""
TOKENS_PER_TURN = 4
TOKENS_PER_IMAGE = 1_600
"""What a large one takes."""


def estimate_tokens(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) // BYTES_PER_TOKEN + TOKENS_PER_TURN for text in texts)


def estimate_request_tokens(request: LlmRequest) -> int:
    """All that a model would be given: the words, the calls of tools and the tools themselves, the images."""
    turns = request.conversation()
    images = sum(part.get("type") == "image_url" for turn in turns for part in _parts(turn))
    said = (text for turn in turns for text in _said(turn))
    tools = (to_json(tool).decode() for tool in request.tools or ())
    return estimate_tokens((*said, *tools)) + images * TOKENS_PER_IMAGE


def _parts(turn: ChatMessage) -> Iterable[dict[str, object]]:
    return turn.content if isinstance(turn.content, list) else ()


def _said(turn: ChatMessage) -> Iterator[str]:
    yield turn.text()
    for block in (*(turn.tool_calls or ()), *(turn.thinking_blocks or ())):
        yield to_json(block).decode()
