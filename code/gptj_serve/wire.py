"""The messages between a front and the engine: one JSON object a line over a Unix socket.

Front to engine: ``submit`` (all sequences of one call), ``abort`` (one sequence).
Engine to front: ``hello`` first (a `ModelInfo`), then one ``events`` message a step with all that
happened to the sequences of this connection.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from gptj_serve.errors import ServingError
from gptj_serve.request import EndEvent, GenerationRequest, ModelInfo, Timings, TokenEvent

MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line ends the connection. 256 sequences of 2048 ids are about 4 MB."""


def hello(info: ModelInfo) -> bytes:
    """The engine's first line on a connection."""
    return _line({"type": "hello", "model": info.to_wire()})


def submit(requests: Sequence[GenerationRequest]) -> bytes:
    """A call's sequences."""
    return _line({"type": "submit", "requests": [request.to_wire() for request in requests]})


def abort(request_id: str) -> bytes:
    """Cancel one sequence."""
    return _line({"type": "abort", "request_id": request_id})


def events(batch: Iterable[TokenEvent | EndEvent]) -> bytes:
    """What a step did to the sequences of one connection."""
    tokens: list[Any] = []
    ends: list[Any] = []
    for event in batch:
        if isinstance(event, TokenEvent):
            tokens.append([event.request_id, event.token_id, event.logprob])
        else:
            error = event.error.to_wire() if event.error else None
            timings = asdict(event.timings) if event.timings else None
            ends.append([event.request_id, event.reason, error, timings])
    return _line({"type": "events", "tokens": tokens, "ends": ends})


def read(line: bytes) -> dict[str, Any]:
    """Parse a line.

    Raises:
        ValueError: Not a JSON object with a type.
    """
    message = json.loads(line)
    if not isinstance(message, dict) or "type" not in message:
        raise ValueError("not a message")
    return message


def read_events(message: dict[str, Any]) -> list[TokenEvent | EndEvent]:
    """The events of an ``events`` message; a sequence's tokens come before its end."""
    tokens = [TokenEvent(*token) for token in message["tokens"]]
    ends = [
        EndEvent(
            request_id,
            reason,
            ServingError.from_wire(error) if error else None,
            Timings(**timings) if timings else None,
        )
        for request_id, reason, error, timings in message["ends"]
    ]
    return [*tokens, *ends]


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
