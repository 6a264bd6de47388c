"""The messages between a front and the engine: one JSON object a line over a Unix socket.

A front sends `Submit`, `Abort` and `Watch`. The engine sends `Hello` first, then an `Events` for each step
with everything that happened to the sequences of this connection; after a `Watch` it also sends `Stats`, at
once and `STATS_INTERVAL_S` apart.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gptj_serve.errors import ServingError
from gptj_serve.request import EndEvent, EngineStats, Event, GenerationRequest, ModelInfo, TokenEvent

STATS_INTERVAL_S = 0.25
MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer line ends the connection; 256 sequences of 2048 ids are about 4 MB."""


class Submit(msgspec.Struct, tag_field="type", tag="submit"):
    """A front asks for all sequences of one call. The engine notes on which connection, as for `Abort`."""

    requests: tuple[GenerationRequest, ...]
    connection: int = 0


class Abort(msgspec.Struct, tag_field="type", tag="abort"):
    """A front no longer wants this sequence."""

    request_id: str
    connection: int = 0


class Watch(msgspec.Struct, tag_field="type", tag="watch"):
    """A front wants statistics from now on."""


class Hello(msgspec.Struct, tag_field="type", tag="hello"):
    """The engine's first line on a connection."""

    model: ModelInfo


class Events(msgspec.Struct, tag_field="type", tag="events"):
    """What a step did to the sequences of one connection; a sequence's tokens come before its end."""

    tokens: list[TokenEvent]
    ends: list[EndEvent]


class Stats(msgspec.Struct, tag_field="type", tag="stats"):
    """What the engine does."""

    stats: EngineStats


def hello(info: ModelInfo) -> bytes:
    """The line of a `Hello`."""
    return _line(Hello(info))


def submit(requests: Sequence[GenerationRequest]) -> bytes:
    """The line of a `Submit`."""
    return _line(Submit(tuple(requests)))


def abort(request_id: str) -> bytes:
    """The line of an `Abort`."""
    return _line(Abort(request_id))


def watch() -> bytes:
    """The line of a `Watch`."""
    return _line(Watch())


def stats(now: EngineStats) -> bytes:
    """The line of a `Stats`."""
    return _line(Stats(now))


def events(batch: Iterable[Event]) -> bytes:
    """The line of an `Events`. A log-probability that is not finite becomes None, as JSON has no -inf."""
    tokens: list[TokenEvent] = []
    ends: list[EndEvent] = []
    for event in batch:
        if isinstance(event, TokenEvent):
            tokens.append(event)
        else:
            ends.append(event)
    return _line(Events(tokens, ends))


def read_from_front(line: bytes) -> Submit | Abort | Watch:
    """Read what a front says; raises ValueError if it is none of these messages."""
    return _from_front.decode(line)


def read_hello(line: bytes) -> ModelInfo:
    """Read what the engine says first; raises ValueError if it is something else."""
    return _hello.decode(line).model


def read_from_engine(line: bytes) -> Events | Stats:
    """Read what the engine says after that; raises ValueError if it is none of these messages."""
    return _from_engine.decode(line)


def _line(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message) + b"\n"


def _to_json(value: Any) -> Any:
    if isinstance(value, ServingError):
        return value.to_wire()
    raise TypeError(f"{type(value).__name__} does not go over the socket")


def _from_json(kind: type, value: Any) -> Any:
    return kind.from_wire(value) if kind is ServingError else value


_encoder = msgspec.json.Encoder(enc_hook=_to_json)
_from_front: "msgspec.json.Decoder[Submit | Abort | Watch]" = msgspec.json.Decoder(Submit | Abort | Watch)
_hello = msgspec.json.Decoder(Hello)
_from_engine: "msgspec.json.Decoder[Events | Stats]" = msgspec.json.Decoder(
    Events | Stats, dec_hook=_from_json
)
