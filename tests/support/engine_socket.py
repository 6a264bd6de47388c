"""A test's own end of the engine's socket."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from support.server import WAIT_TIMEOUT_S


@contextmanager
def connected(path: Path) -> Iterator[tuple[socket.socket, BinaryIO]]:
    with socket.socket(socket.AF_UNIX) as front:
        front.settimeout(WAIT_TIMEOUT_S)
        front.connect(str(path))
        with front.makefile("rb") as lines:
            assert json.loads(lines.readline())["type"] == "hello"
            yield front, lines
