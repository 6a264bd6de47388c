"""Reads answers in OpenAI's completions schema: their usage, and which events are tokens."""

import json
from collections.abc import Sequence
from typing import Any

from gptj_serve.benchmark.targets.target import TimedAnswer

MAX_ERROR_CHARS = 300


def usage(document: Any) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the answer as the server counts them; None where it does not."""
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


def timed_answer(asked_s: float, ended_s: float, body: bytes, event_s: Sequence[float] | None) -> TimedAnswer:
    """The answer that came back with status 200.

    Args:
        asked_s, ended_s: When the request was sent and when the answer was whole, on the monotonic clock.
        body: The whole answer; for a stream, all its events.
        event_s: When each event of a stream came, on the same clock; None for an answer that is no stream.
    """
    if event_s is None:
        return TimedAnswer(asked_s, ended_s - asked_s, 200, (), *usage(read(body)))
    found, num_other, error = stream_end(body)
    token_s = tuple(when_s - asked_s for when_s in event_s[: len(event_s) - num_other])
    return TimedAnswer(asked_s, ended_s - asked_s, 200, token_s, *usage(found), error)


def read(body: bytes) -> Any:
    """A JSON document; None if the bytes are none."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def error_text(document: Any) -> str:
    """The message of an error's document, shortened."""
    error = document.get("error") if isinstance(document, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "an answer that is no JSON object")[:MAX_ERROR_CHARS]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
