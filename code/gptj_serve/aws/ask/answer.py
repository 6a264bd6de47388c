"""Reads a service's answers in every schema it speaks: texts, pieces of a stream, errors. It does no I/O."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptj_serve.aws.common.errors import CommandError

_DONE = "[DONE]"
_MAX_SHOWN = 1000


class Refused(CommandError):
    """The service answered with an error."""


def refused(status: int, body: bytes | str, hint: str | None = None) -> Refused:
    """The error that an answer tells, with its own words and its HTTP status."""
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    try:
        message, kind, request_id = _parts(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, kind, request_id = text.strip()[:_MAX_SHOWN], "", ""
    about = f" (request {request_id})" if request_id else ""
    return Refused(f"{status}{f' {kind}' if kind else ''}: {message or 'no reason was given'}{about}", hint)


def texts(body: bytes) -> list[str]:
    """The generated texts of a whole answer; the body itself if it is in no schema of ours."""
    text = body.decode("utf-8", "replace")
    try:
        return _texts(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        return [text]


class EventReader:
    """Joins pieces to server-sent events; a piece may end in the middle of an event or of a character."""

    def __init__(self) -> None:
        self._line = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        """Take a piece; returns the data of all events that it completes."""
        *lines, self._line = (self._line + piece).split(b"\n")
        events = []
        for line in lines:
            if content := line.removesuffix(b"\r"):
                name, _, value = content.decode("utf-8", "replace").partition(":")
                if name == "data":
                    self._data.append(value.removeprefix(" "))
            elif self._data:
                events.append("\n".join(self._data))
                self._data = []
        return events


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream.

    Attributes:
        text: The text that it adds.
        is_token: Whether it stands for a token.
        is_last: Whether the text is complete with it.
        reason: Why the text ended; None if it did not end or the event does not say.
        index: The number of the answer that it belongs to.
    """

    text: str
    is_token: bool = False
    is_last: bool = False
    reason: str | None = None
    index: int = 0


def parse_event(data: str) -> Event:
    """Read one event.

    Raises:
        Refused: The event tells an error, after which nothing comes.
        CommandError: The event is in no schema of ours.
    """
    if data == _DONE:
        return Event("", is_last=True)
    try:
        document = json.loads(data)
        if "error" in document:
            message, kind, request_id = _parts(document)
            about = f" (request {request_id})" if request_id else ""
            raise Refused(f"the stream ended with an error: {kind}: {message}{about}")
        return _token_event(document) if "token" in document else _choice_event(document)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise CommandError(f"the stream has an event that no schema knows: {data[:_MAX_SHOWN]}") from None


def _token_event(document: Mapping[str, Any]) -> Event:
    details = document.get("details") or {}
    is_last = document.get("generated_text") is not None
    text = "" if document["token"].get("special") else document["token"]["text"] or ""
    return Event(text, bool(document["token"]), is_last, details.get("finish_reason"))


def _choice_event(document: Mapping[str, Any]) -> Event:
    if not document["choices"]:  # the usage comes in an event of its own
        return Event("")
    choice = document["choices"][0]
    text = choice["delta"].get("content") if "delta" in choice else choice["text"]
    return Event(text or "", bool(text), reason=choice.get("finish_reason"), index=choice.get("index", 0))


def _parts(document: Mapping[str, Any]) -> tuple[str, str, str]:
    """Message, kind and request id of an error, in any of the forms that our service has."""
    error = document.get("error")
    if isinstance(error, Mapping):  # OpenAI's
        return str(error["message"]), str(error.get("type", "")), str(error.get("request_id", ""))
    if error is not None:
        return str(error), str(document.get("error_type", "")), str(document.get("request_id", ""))
    return str(document["message"]), str(document.get("type", "")), ""  # the model server's


def _texts(document: Any) -> list[str]:
    if isinstance(document, list):
        return [text for entry in document for text in _texts(entry)]
    if "generated_text" in document:
        return [document["generated_text"]]
    if "response" in document:  # the guide's
        return _texts(document["response"])
    return [
        choice["message"]["content"] if "message" in choice else choice["text"]
        for choice in document["choices"]
    ]
