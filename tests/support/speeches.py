"""How the servers of all dialects speak, for the tests that every dialect must pass. A new dialect is a row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from schemas.policy import Dialect
from tests.support import anthropic_speech, cohere_speech, gemini_speech, ollama_speech, openai_speech


@dataclass(frozen=True)
class Speech:
    """How a dialect's server speaks. The last line of a whole stream is its end mark."""

    recorded: bytes
    """A whole answer: a text with Korean and an emoji, and usage."""
    tools: bytes
    """A whole answer of several tool calls."""
    began: bytes
    """The start of `recorded`, up to and with some of its text."""
    text: str
    """All text of `recorded`."""
    said: Callable[[str], bytes]
    """A piece of text that may follow `began`."""
    counted: Callable[[Any, Any], bytes]
    """A whole answer with these counts of tokens, in and out."""
    enough: bytes = b""
    """In what line stands what makes an answer whole too, when the body ends cleanly without the end mark."""
    sse: bool = True

    def event(self, data: bytes) -> bytes:
        return b"data: %s\n\n" % data if self.sse else b"%s\n" % data


GEMINI_BEGAN: Final = gemini_speech.said(gemini_speech.text("안녕하세요 ")) + gemini_speech.said(
    gemini_speech.text("🙂 hello")
)
GEMINI_END: Final = gemini_speech.said(finish="STOP", usageMetadata=gemini_speech.USAGE)


def _counted_by_openai(tokens_in: Any, tokens_out: Any) -> bytes:
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return openai_speech.PIECES + openai_speech.FINISH + openai_speech.event(usage=usage) + openai_speech.DONE


def _counted_by_cohere(tokens_in: Any, tokens_out: Any) -> bytes:
    usage = {"billed_units": {"input_tokens": tokens_in, "output_tokens": tokens_out}}
    return cohere_speech.PIECES + cohere_speech.FINISH + cohere_speech.end(usage=usage)


def _counted_by_anthropic(tokens_in: Any, tokens_out: Any) -> bytes:
    spoken = anthropic_speech
    uncached = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    begun = spoken.start(input_tokens=tokens_in, **uncached) + spoken.block(0, "text", text="")
    text = spoken.piece(0, "text_delta", openai_speech.TEXT) + spoken.closed(0)
    return begun + text + spoken.stop("end_turn", usage={"output_tokens": tokens_out}) + spoken.END


def _counted_by_gemini(tokens_in: Any, tokens_out: Any) -> bytes:
    usage = {"promptTokenCount": tokens_in, "candidatesTokenCount": tokens_out}
    return GEMINI_BEGAN + gemini_speech.said(finish="STOP", usageMetadata=usage)


SPEECHES: Final[dict[Dialect, Speech]] = {
    "ollama": Speech(
        ollama_speech.RECORDED, ollama_speech.TOOLS, ollama_speech.PIECES, ollama_speech.TEXT, ollama_speech.said,
        lambda tokens_in, tokens_out: ollama_speech.PIECES + ollama_speech.done(tokens_in, tokens_out), sse=False,
    ),
    "openai": Speech(
        openai_speech.RECORDED, openai_speech.TOOLS, openai_speech.PIECES, openai_speech.TEXT,
        lambda text: openai_speech.event({"content": text}), _counted_by_openai, enough=b'"finish_reason": "',
    ),
    "anthropic": Speech(
        anthropic_speech.SPOKEN, anthropic_speech.TOOLS, anthropic_speech.PIECES, openai_speech.TEXT,
        lambda text: anthropic_speech.piece(0, "text_delta", text), _counted_by_anthropic,
    ),
    "gemini": Speech(
        GEMINI_BEGAN + GEMINI_END, gemini_speech.TOOLS, GEMINI_BEGAN, gemini_speech.TEXT,
        lambda text: gemini_speech.said(gemini_speech.text(text)), _counted_by_gemini,
    ),
    "cohere": Speech(
        cohere_speech.RECORDED, cohere_speech.TOOLS, cohere_speech.PIECES, cohere_speech.TEXT, cohere_speech.said,
        _counted_by_cohere,
    ),
}  # fmt: skip
