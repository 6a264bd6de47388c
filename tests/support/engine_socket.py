"""A test's own end of the engine's socket."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gptj_serve import wire
from gptj_serve.request import EngineStats, Event
from support.server import WAIT_TIMEOUT_S


@contextmanager
def connected(path: Path) -> Iterator[tuple[socket.socket, BinaryIO]]:
    with socket.socket(socket.AF_UNIX) as front:
        front.settimeout(WAIT_TIMEOUT_S)
        front.connect(str(path))
        with front.makefile("rb") as lines:
            wire.read_hello(lines.readline())
            yield front, lines


def read_events(lines: BinaryIO) -> list[Event]:
    message = wire.read_from_engine(lines.readline())
    assert isinstance(message, wire.Events)
    return [*message.tokens, *message.ends]


def read_stats(lines: BinaryIO) -> EngineStats:
    message = wire.read_from_engine(lines.readline())
    assert isinstance(message, wire.Stats)
    return message.stats
