"""Log-probabilities as OpenAI's schemas report them, for whole answers and for streams."""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from gptj_serve.serving.generation import Token

_PART_OF_A_CHARACTER = "\ufffd"
_VERY_UNLIKELY = -9999.0  # OpenAI's word for a probability of 0


class PlacedToken(NamedTuple):
    """A token and the character of the answer's text that it begins at."""

    start: int
    token: Token


class TokenQueue:
    """Keeps tokens until their text is final, so that no token of a stop string is ever told.

    Where a token begins is told from the tokens' own texts. Of characters that were split into several
    tokens these have only U+FFFD: neighbours of that kind count as one character, so what comes after
    two such characters in a row is placed too early, never too late.
    """

    def __init__(self) -> None:
        self._waiting: deque[PlacedToken] = deque()
        self._num_chars = 0
        self._ends_in_part = False

    def push(self, token: Token) -> None:
        """Take the next token."""
        self._waiting.append(PlacedToken(self._num_chars, token))
        if token.special or not token.text:
            return
        text = token.text.lstrip(_PART_OF_A_CHARACTER) if self._ends_in_part else token.text
        self._num_chars += len(text)
        self._ends_in_part = token.text.endswith(_PART_OF_A_CHARACTER)

    def take(self, num_chars: int) -> list[PlacedToken]:
        """The tokens not taken yet that begin before this character."""
        taken = []
        while self._waiting and self._waiting[0].start < num_chars:
            taken.append(self._waiting.popleft())
        return taken


def of_answer(tokens: Sequence[Token], text: str) -> list[PlacedToken]:
    """The tokens of the text that was kept: neither the end of text nor a stop string's."""
    queue = TokenQueue()
    for token in tokens:
        queue.push(token)
    return queue.take(len(text))


def for_completions(placed: Sequence[PlacedToken], num_top: int) -> dict[str, Any]:
    """The ``logprobs`` of a choice of ``/v1/completions``."""
    return {
        "tokens": [token.text for _, token in placed],
        "token_logprobs": [_known(token.logprob) for _, token in placed],
        "top_logprobs": [_top_by_text(token) for _, token in placed] if num_top else None,
        "text_offset": [start for start, _ in placed],
    }


def for_chat(placed: Sequence[PlacedToken]) -> dict[str, Any]:
    """The ``logprobs`` of a choice of ``/v1/chat/completions``."""
    content = [
        {
            **_entry(token.text, token.logprob),
            "top_logprobs": [_entry(text, logprob) for text, logprob in token.top],
        }
        for _, token in placed
    ]
    return {"content": content, "refusal": None}


def _top_by_text(token: Token) -> dict[str, float]:
    by_text: dict[str, float] = {}
    # the token itself is told even if it is none of the likeliest. Parts of characters look alike: the
    # likeliest counts
    for text, logprob in (*token.top, (token.text, token.logprob)):
        by_text.setdefault(text, _known(logprob))
    return by_text


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    known_bytes = None if _PART_OF_A_CHARACTER in text else list(text.encode())
    return {"token": text, "logprob": _known(logprob), "bytes": known_bytes}


def _known(logprob: float | None) -> float:
    return _VERY_UNLIKELY if logprob is None else logprob
