"""How many tokens a text will be, before any tokenizer has seen it."""

from collections.abc import Iterable

BYTES_PER_TOKEN = 4
"""Close for English (4 letters a token) and for Korean (3 bytes a syllable, about 1.3 syllables a token)."""
TOKENS_PER_TURN = 4


def estimate_tokens(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) // BYTES_PER_TOKEN + TOKENS_PER_TURN for text in texts)
