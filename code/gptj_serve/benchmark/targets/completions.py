"""Reads answers in OpenAI's completions schema: their usage, and which events are tokens."""

import json
from collections.abc import Sequence
from typing import Any

MAX_ERROR_CHARS = 300


def usage(document: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer, as the server counts them; None where it does not."""
    counts = document.get("usage") if isinstance(document, dict) else None
    counts = counts if isinstance(counts, dict) else {}
    return _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))


def stream_end(body: bytes) -> tuple[Any, int, str | None]:
    """Look at the last events of a stream.

    Returns:
        The last document that has a usage (or None), how many events at the end are no tokens, and an error
        that came as an event.
    """
    with_usage: Any = None
    num_other = 0
    for event in reversed(body.decode("utf-8", "replace").split("\n\n")):
        data = event.partition("data:")[2].strip()
        if not data:
            continue
        if data != "[DONE]":
            document = read(data.encode())
            if isinstance(document, dict) and "error" in document:
                return None, num_other, error_text(document)
            with_usage = with_usage or (document if usage(document) != (None, None) else None)
            if isinstance(document, dict) and document.get("choices"):
                return with_usage, num_other, None
        num_other += 1
    return with_usage, num_other, None


def token_times(event_s: Sequence[float], num_other: int, asked_s: float) -> tuple[float, ...]:
    """Seconds from the request to each event that is a token."""
    return tuple(when_s - asked_s for when_s in event_s[: len(event_s) - num_other])


def read(body: bytes) -> Any:
    """A JSON document; None if it is none."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def error_text(document: Any) -> str:
    """What an error's document says, in few words."""
    error = document.get("error") if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "an answer that is no JSON object")[:MAX_ERROR_CHARS]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
