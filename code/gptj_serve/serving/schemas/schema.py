"""What a schema is: how answers, their streams and errors look to the clients that speak it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from gptj_serve.errors import BadRequest, ServingError
from gptj_serve.serving.call import Call
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


def server_sent_event(document: Any) -> bytes:
    """One server-sent event that carries JSON."""
    return b"data: " + encode(document).encode() + b"\n\n"


class EventTemplate:
    """Events that differ in one string alone: all but that string is rendered once.

    Args:
        render: Makes the event that has a given string, in one place.
    """

    def __init__(self, render: Callable[[str], bytes]) -> None:
        # no name or id that the event has beside it can hold this character
        mark = "\0"
        self._before, self._after = render(mark).split(encode(mark).encode())

    def event(self, text: str) -> bytes:
        """The event that has this string."""
        return self._before + encode(text).encode() + self._after


class Schema(ABC):
    """One schema. Bodies are read by functions of its module: their shape, or the path, says which it is.

    Attributes:
        name: What `Ask.schema`, logs and metrics call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def render(
        self, call: Call, answers: Sequence[Answer], request_id: str, num_generated: int | None
    ) -> Any:
        """The whole answer: what becomes JSON, or text.

        Args:
            call: What was asked.
            answers: Those that the client gets, all of the first prompt first.
            request_id: The call's.
            num_generated: Tokens of all candidates; None if there were none but the answers.
        """

    def stream(self, call: Call, request_id: str) -> StreamRenderer:
        """What renders the answer piece by piece.

        Raises:
            BadRequest: The schema has no streams.
        """
        raise BadRequest(f"stream=true: the {self.name} schema has no streams; must be false")

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """An error's body."""
        return error.to_body(request_id)
