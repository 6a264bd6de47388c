"""Says in the log what took how long on the way to ready."""

import contextlib
import logging
import time
from collections.abc import Iterator

from gptj_serve.logs import log_event

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def logged_import(what: str) -> Iterator[None]:
    """Log the time of the imports inside: on a warm machine they are most of a start.

    Args:
        what: The slow packages among them.
    """
    started_s = time.monotonic()
    yield
    log_event(logger, "imported", f"imported {what}", what=what, seconds=_since_s(started_s))


@contextlib.contextmanager
def logged_warm_up() -> Iterator[None]:
    """Log the time of a model's warm-up."""
    started_s = time.monotonic()
    yield
    log_event(logger, "warmed_up", "the model is warmed up", seconds=_since_s(started_s))


def _since_s(started_s: float) -> float:
    return round(time.monotonic() - started_s, 3)
