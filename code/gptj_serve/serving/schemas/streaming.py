"""What every schema needs to answer as server-sent events."""

import json
from typing import Any, Protocol

from gptj_serve.serving.generation import Answer, Delta

encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""What `json.dumps` does with these options, without making an encoder for each event. No space is sent."""

CONTENT_TYPE = "text/event-stream; charset=utf-8"


class StreamRenderer(Protocol):
    """Renders one call's answer piece by piece. No I/O; the pieces joined are the body of the response."""

    def delta(self, delta: Delta) -> bytes:
        """Events for what one token or end added; may be empty."""
        ...

    def end(self, answers: tuple[Answer, ...]) -> bytes:
        """What follows when every sequence has ended; may be empty."""
        ...


def event(document: Any) -> bytes:
    """One server-sent event that carries JSON."""
    return b"data: " + encode(document).encode() + b"\n\n"
