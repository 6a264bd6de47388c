"""Shows a command's result on stdout and its progress on stderr."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

LINES_EVERY_S = 10.0
"""Seconds between the lines that a transfer shows where there is no terminal for a bar."""


class Console:
    """Shows a result and progress.

    Args:
        as_json: Show the result as one JSON object instead of text.
        out: Where the result goes; stdout by default.
        err: Where progress goes; stderr by default.
    """

    def __init__(self, as_json: bool = False, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.as_json = as_json
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._bars: list[Any] = []

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches the progress."""
        return self._err.isatty()

    def result(self, fields: Mapping[str, Any], text: str) -> None:
        """Show the command's result, the fields as JSON or the text; a command calls this once."""
        print(json.dumps(fields, default=str) if self.as_json else text, file=self._out, flush=True)

    def progress(self, message: str) -> None:
        """Show one line about what happens."""
        if self._bars:
            self._bars[-1].write(message, file=self._err)
        else:
            print(message, file=self._err, flush=True)

    @contextlib.contextmanager
    def bar(self, total_bytes: int, what: str) -> Iterator[Callable[[int], None]]:
        """Show how far a transfer is, with a bar on a terminal or else a line now and then.

        Yields:
            A function that takes the number of bytes that were added; any thread may call it.
        """
        lock = threading.Lock()
        with (
            self._terminal_bar(total_bytes, what)
            if self.is_terminal
            else self._lines(total_bytes, what) as update
        ):

            def add(num_bytes: int) -> None:
                with lock:
                    update(num_bytes)

            yield add

    @contextlib.contextmanager
    def _terminal_bar(self, total_bytes: int, what: str) -> Iterator[Callable[[int], None]]:
        from tqdm import tqdm

        units: dict[str, Any] = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}
        with tqdm(total=total_bytes, desc=what, file=self._err, **units) as bar:
            self._bars.append(bar)
            try:
                yield bar.update
            finally:
                self._bars.remove(bar)

    @contextlib.contextmanager
    def _lines(self, total_bytes: int, what: str) -> Iterator[Callable[[int], None]]:
        lines = _Lines(total_bytes, what, self.progress)
        yield lines.update
        lines.show()


class _Lines:
    """Shows a transfer's progress as lines: one every `LINES_EVERY_S`, and one at the end."""

    def __init__(self, total_bytes: int, what: str, show: Callable[[str], None]) -> None:
        self._total_bytes, self._what, self._show = total_bytes, what, show
        self._num_bytes = 0
        self._next_s = time.monotonic() + LINES_EVERY_S

    def update(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LINES_EVERY_S
            self.show()

    def show(self) -> None:
        percent = 100 * self._num_bytes // self._total_bytes if self._total_bytes else 100
        self._show(f"{self._what}: {size(self._num_bytes)} of {size(self._total_bytes)} ({percent} %)")


def size(num_bytes: int) -> str:
    """Bytes for people: ``12.1 GB``, decimal units as AWS bills them."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"
