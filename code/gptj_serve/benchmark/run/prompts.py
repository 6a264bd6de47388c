"""Makes prompts of an exact number of tokens without a tokenizer: the server says how many they have."""

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
"""Words that are one token each in most vocabularies, with the space before them."""

REPEATS = 4

CountTokens = Callable[[str], Awaitable[int]]
"""Asks the server how many tokens a text has."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What prompts are made of.

    Attributes:
        words: Each is one token.
        num_added: How many tokens the server adds to every prompt.
    """

    words: tuple[str, ...] = WORDS
    num_added: int = 0

    def prompt(self, num_tokens: int, seed: str) -> str:
        """A prompt of a number of tokens; prompts differ by seed, so that a prefix cache gains nothing."""
        words = random.Random(seed).choices(self.words, k=num_tokens - self.num_added)
        return "".join(f" {word}" for word in words)


async def calibrate(count_tokens: CountTokens) -> Vocabulary:
    """Find words that are one token each for a server.

    Raises:
        StartupError: There is no such word.
    """
    # all words are tokens of GPT-2's tokenizer; for another tokenizer one word is enough
    for words, repeats in ((WORDS, 1), *(((word,), REPEATS) for word in WORDS)):
        text = "".join(f" {word}" for word in words) * repeats
        if found := await _vocabulary(count_tokens, words, text):
            return found
    raise StartupError("none of the words that prompts are made of is one token for this server")


async def _vocabulary(count_tokens: CountTokens, words: tuple[str, ...], text: str) -> Vocabulary | None:
    once, twice = await count_tokens(text), await count_tokens(text + text)
    num_words = text.count(" ")
    return Vocabulary(words, once - num_words) if twice - once == num_words else None
