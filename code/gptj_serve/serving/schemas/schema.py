"""What a schema is: how answers, streams and errors look to the clients that speak it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import msgspec

from gptj_serve.errors import BadRequest, ServingError
from gptj_serve.serving.call import Call
from gptj_serve.serving.generation import Answer, Delta

encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""Encodes as `json.dumps` does with these options, without an encoder for each event and without spaces."""

CONTENT_TYPE = "text/event-stream; charset=utf-8"


class StreamRenderer(Protocol):
    """Renders a call's answer piece by piece, without I/O; the joined pieces are the body of the response."""

    def delta(self, delta: Delta) -> bytes:
        """Events for what a token or an end added; may be empty."""
        ...

    def end(self, answers: tuple[Answer, ...]) -> bytes:
        """What follows when every sequence has ended; may be empty."""
        ...


def server_sent_event(document: Any) -> bytes:
    """A server-sent event that carries JSON."""
    return b"data: " + encode(document).encode() + b"\n\n"


encode_text: Callable[[str], bytes] = msgspec.json.Encoder().encode
"""A string as `encode` writes it, in half the time."""
_encode_float: Callable[[float], bytes] = msgspec.json.Encoder().encode


def encode_logprob(logprob: float | None) -> bytes:
    """A finite number or null as `encode` writes it, as a rule in a tenth of the time."""
    if logprob is None:
        return b"null"
    # msgspec has another notation for what Python writes with an exponent
    return _encode_float(logprob) if 1e-4 <= abs(logprob) < 1e16 else repr(logprob).encode()


class EventTemplate:
    """Events that only differ in one string; everything else is rendered once.

    Args:
        render: Makes the event that has a given string, in one place.
    """

    def __init__(self, render: Callable[[str], bytes]) -> None:
        # no name or id that the event has beside it can hold this character
        mark = "\0"
        self._before, self._after = render(mark).split(encode_text(mark))

    def event(self, text: str) -> bytes:
        """The event that has this string."""
        return self._before + encode_text(text) + self._after


class Schema(ABC):
    """A schema. Functions of its module read bodies, whose shape or path shows which schema they have.

    Attributes:
        name: The schema's name in `Ask.schema`, logs and metrics.
    """

    name: ClassVar[str]

    @abstractmethod
    def render(
        self, call: Call, answers: Sequence[Answer], request_id: str, num_generated: int | None
    ) -> Any:
        """The whole answer: what becomes JSON, or text.

        Args:
            call: What was asked.
            answers: The answers for the client, all of the first prompt first.
            request_id: The call's id.
            num_generated: How many tokens all candidates have; None if there were only the answers.
        """

    def stream(self, call: Call, request_id: str) -> StreamRenderer:
        """The renderer of the answer piece by piece.

        Raises:
            BadRequest: The schema has no streams.
        """
        raise BadRequest(f"stream=true: the {self.name} schema has no streams; must be false")

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """An error's body."""
        return error.to_body(request_id)
