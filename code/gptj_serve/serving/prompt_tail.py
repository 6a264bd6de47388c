"""Finds the last tokens of a long text without tokenising the rest of it.

Byte-level BPE never joins anything across the borders of pre-tokens ("words"), and GPT-2's pattern finds
words from left to right without looking back. So the tokens after a border are the same whatever comes before
it, and a tail that begins at a border has exactly the tokens with which the whole text ends.
"""

import json
from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

MAX_WORD_CHARS = 64 * 1024
"""A border has to be found within so many characters of where a tail would begin."""
MAX_WHOLE_CHARS = 512 * 1024
"""Texts up to this length are tokenised as a whole if borders cannot be found with certainty."""
_FIRST_CHARS_PER_TOKEN = 8
_FIRST_WINDOW_CHARS = 1024
_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

Encode = Callable[[str], tuple[int, ...]]


class PromptTail:
    """Encodes the ends of texts.

    Args:
        backend: The tokenizer that ``encode`` uses.
        encode: Gives all ids of a text.
        longest_token_bytes: How many bytes the longest token has.
    """

    def __init__(self, backend: tokenizers.Tokenizer, encode: Encode, longest_token_bytes: int) -> None:
        self._encode = encode
        self._chars_per_token = longest_token_bytes
        self._num_special = backend.num_special_tokens_to_add(False)
        self._added = [
            token.content for token in backend.get_added_tokens_decoder().values() if token.content
        ]
        self._longest_added = max(map(len, self._added), default=0)
        pre_tokenizer: Any = backend.pre_tokenizer
        # this is the form of ``tokenizer.json``
        words = {} if pre_tokenizer is None else json.loads(pre_tokenizer.__getstate__())
        self._knows_borders = (
            backend.normalizer is None and words.get("type") == "ByteLevel" and words.get("use_regex", True)
        )
        self._adds_space = bool(words.get("add_prefix_space"))

    def encode(self, text: str, num_tokens: int) -> tuple[int, ...]:
        """The last ids of a text: all of them, or at least ``num_tokens``.

        Args:
            text: Well-formed Unicode.
            num_tokens: How many are wanted, >= 1.

        Raises:
            ValueError: They cannot be found without tokenising too much; the message says why.
        """
        num_chars = _FIRST_CHARS_PER_TOKEN * num_tokens + _FIRST_WINDOW_CHARS
        most = self._chars_per_token * (num_tokens + self._num_special) + MAX_WORD_CHARS
        if not self._knows_borders:
            if len(text) > MAX_WHOLE_CHARS:
                raise ValueError(f"has {len(text)} characters; at most {MAX_WHOLE_CHARS} can be tokenised")
            return self._encode(text)
        while num_chars < len(text):
            token_ids = self._encode(text[self._border(text, len(text) - num_chars) :])
            if len(token_ids) - self._num_special >= num_tokens:
                return token_ids
            if num_chars > most:
                raise ValueError(f"its last {num_chars} characters have fewer than {num_tokens} tokens")
            num_chars *= 4
        return self._encode(text)

    def _border(self, text: str, end: int) -> int:
        """The last border at or before a position, or the text's beginning."""
        for window in (_FIRST_WINDOW_CHARS, MAX_WORD_CHARS):
            start = max(0, end - window)
            words = _WORDS.pre_tokenize_str(text[start : end + 1])
            for _, (first, _) in reversed(words):  # words begin here if one begins at the start
                if first > 0 and self._is_border(text, start + first):
                    return start + first
            if end <= window:
                return 0
        raise ValueError(
            f"has a word of more than {MAX_WORD_CHARS} characters; in prompts as long as this one, spaces or"
            " line ends have to come sooner"
        )

    def _is_border(self, text: str, place: int) -> bool:
        """Whether a word begins here, whatever comes before the two characters at this position.

        Words are runs of letters, of digits, of spaces or of other characters, so one begins where the kind
        changes, except for a space before a word, and for contractions such as ``'re``.
        """
        before, after = text[place - 1], text[place]
        if before == "'" or (self._adds_space and after != " "):
            return False
        return len(_WORDS.pre_tokenize_str(before + after)) > 1 and not self._touches_added(text, place)

    def _touches_added(self, text: str, place: int) -> bool:
        """Whether an added token, which comes before words, may cross a position, or begin or end there."""
        start = max(0, place - self._longest_added)
        around = text[start : place + self._longest_added]
        middle = place - start
        return any(
            around.find(content, max(0, middle - len(content)), middle + len(content)) >= 0
            for content in self._added
        )
