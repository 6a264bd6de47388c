"""Says in the log what took how long on the way to ready."""

import contextlib
import logging
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def logged_import(what: str) -> Iterator[None]:
    """Log the time of the imports inside: on a warm machine they are most of a start.

    Args:
        what: The slow packages among them.
    """
    with _logged("imported", f"imported {what}", {"what": what}):
        yield


@contextlib.contextmanager
def logged_warm_up() -> Iterator[None]:
    """Log the time of a model's warm-up."""
    with _logged("warmed_up", "the model is warmed up", {}):
        yield


@contextlib.contextmanager
def _logged(event: str, message: str, fields: dict[str, str]) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    seconds = round(time.monotonic() - started_s, 3)
    logger.info("%s", message, extra={"fields": {"event": event, **fields, "seconds": seconds}})
