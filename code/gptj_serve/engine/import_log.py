"""Says in the log how long imports took: on a warm machine they are most of a start."""

import contextlib
import logging
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def logged_import(what: str) -> Iterator[None]:
    """Log the time of the imports inside.

    Args:
        what: The slow packages among them.
    """
    started_s = time.monotonic()
    yield
    fields = {"event": "imported", "what": what, "seconds": round(time.monotonic() - started_s, 3)}
    logger.info("imported %s", what, extra={"fields": fields})
