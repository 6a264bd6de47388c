"""Prompts of an exact number of tokens, made without a tokenizer: the server says how many they have."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gptj_serve.errors import StartupError

WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "he",
    "was",
    "for",
    "his",
    "with",
    "be",
    "not",
    "they",
    "all",
    "him",
)
"""A token each in most vocabularies, a space before them included."""

REPEATS = 4

CountTokens = Callable[[str], Awaitable[int]]
"""The server's own count of a prompt's tokens."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What prompts are made of.

    Attributes:
        words: Each a token.
        num_added: Tokens that the server puts to every prompt by itself.
    """

    words: tuple[str, ...] = WORDS
    num_added: int = 0

    def prompt(self, num_tokens: int, seed: str) -> str:
        """A prompt of so many tokens, by its seed: a server that remembers prompts would gain nothing."""
        words = random.Random(seed).choices(self.words, k=num_tokens - self.num_added)
        return "".join(f" {word}" for word in words)


async def calibrate(count_tokens: CountTokens) -> Vocabulary:
    """Find words that are a token each for a server.

    Raises:
        StartupError: None is.
    """
    # all of them for GPT-2's tokenizer; for another one word is enough
    for words, repeats in ((WORDS, 1), *(((word,), REPEATS) for word in WORDS)):
        text = "".join(f" {word}" for word in words) * repeats
        if found := await _vocabulary(count_tokens, words, text):
            return found
    raise StartupError("none of the words that prompts are made of is one token for this server")


async def _vocabulary(count_tokens: CountTokens, words: tuple[str, ...], text: str) -> Vocabulary | None:
    once, twice = await count_tokens(text), await count_tokens(text + text)
    num_words = text.count(" ")
    return Vocabulary(words, once - num_words) if twice - once == num_words else None
