"""Log-probabilities as OpenAI's schemas report them, for whole answers and for streams."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from gptj_serve.serving.generation import Token

_PART_OF_A_CHARACTER = "\ufffd"
_VERY_UNLIKELY = -9999.0  # OpenAI's value for a probability of 0


def of_answer(tokens: Sequence[Token], text: str) -> list[Token]:
    """The tokens of the text that was kept, without the end of text and a stop string's tokens."""
    return list(takewhile(lambda token: token.start < len(text), tokens))


def for_completions(tokens: Sequence[Token], num_top: int) -> dict[str, Any]:
    """The ``logprobs`` of a choice of ``/v1/completions``."""
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_known(token.logprob) for token in tokens],
        "top_logprobs": [_top_by_text(token) for token in tokens] if num_top else None,
        "text_offset": [token.start for token in tokens],
    }


def for_chat(tokens: Sequence[Token]) -> dict[str, Any]:
    """The ``logprobs`` of a choice of ``/v1/chat/completions``."""
    content = [
        {
            **_entry(token.text, token.logprob),
            "top_logprobs": [_entry(top.text, top.logprob) for top in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _top_by_text(token: Token) -> dict[str, float]:
    by_text: dict[str, float] = {}
    # the token itself is reported even if it is none of the likeliest. Parts of characters look alike: the
    # likeliest counts
    told = [(one.text, one.logprob) for one in token.top]
    for text, logprob in (*told, (token.text, token.logprob)):
        by_text.setdefault(text, _known(logprob))
    return by_text


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    known_bytes = None if _PART_OF_A_CHARACTER in text else list(text.encode())
    return {"token": text, "logprob": _known(logprob), "bytes": known_bytes}


def _known(logprob: float | None) -> float:
    return _VERY_UNLIKELY if logprob is None else logprob
