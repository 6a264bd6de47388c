"""A test's own end of the engine's socket, and waiting for what happens behind it."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def connected(path: Path) -> Iterator[tuple[socket.socket, BinaryIO]]:
    with socket.socket(socket.AF_UNIX) as front:
        front.settimeout(20)
        front.connect(str(path))
        with front.makefile("rb") as lines:
            assert json.loads(lines.readline())["type"] == "hello"
            yield front, lines


def until(is_so: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.01)
