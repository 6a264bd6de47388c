"""The messages between a front and the engine: one JSON object a line over a Unix socket.

Front to engine: ``submit`` (all sequences of one call), ``abort`` (one sequence), ``watch``.
Engine to front: ``hello`` first (a `ModelInfo`), then one ``events`` message a step with all that
happened to the sequences of this connection; after ``watch`` also ``stats`` (an `EngineStats`), at once
and `STATS_INTERVAL_S` apart.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from gptj_serve.errors import ServingError
from gptj_serve.request import EndEvent, EngineStats, Event, GenerationRequest, ModelInfo, Timings, TokenEvent

STATS_INTERVAL_S = 0.25
MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line ends the connection. 256 sequences of 2048 ids are about 4 MB."""
_encode = json.JSONEncoder(separators=(",", ":")).encode


def hello(info: ModelInfo) -> bytes:
    """The engine's first line on a connection."""
    return _line({"type": "hello", "model": info.to_wire()})


def submit(requests: Sequence[GenerationRequest]) -> bytes:
    """A call's sequences."""
    return _line({"type": "submit", "requests": [request.to_wire() for request in requests]})


def abort(request_id: str) -> bytes:
    """Cancel one sequence."""
    return _line({"type": "abort", "request_id": request_id})


def watch() -> bytes:
    """Ask for statistics from now on."""
    return _line({"type": "watch"})


def stats(now: EngineStats) -> bytes:
    """What the engine does."""
    return _line({"type": "stats", "stats": asdict(now)})


def events(batch: Iterable[Event]) -> bytes:
    """What a step did to the sequences of one connection."""
    tokens: list[Any] = []
    ends: list[Any] = []
    for event in batch:
        if isinstance(event, TokenEvent):
            token = [event.request_id, event.token_id, event.logprob]
            tokens.append([*token, event.top_logprobs] if event.top_logprobs else token)
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


def read_events(message: dict[str, Any]) -> list[Event]:
    """The events of an ``events`` message; a sequence's tokens come before its end."""
    tokens = [_read_token(*token) for token in message["tokens"]]
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


def read_stats(message: dict[str, Any]) -> EngineStats:
    """The content of a ``stats`` message."""
    return EngineStats(**message["stats"])


def _read_token(request_id: str, token_id: int, logprob: float | None, top: Sequence[Any] = ()) -> TokenEvent:
    return TokenEvent(request_id, token_id, logprob, tuple((other, value) for other, value in top))


def _line(message: dict[str, Any]) -> bytes:
    return _encode(message).encode() + b"\n"
