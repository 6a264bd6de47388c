"""How a process of a front ends that cannot start: the launcher says why, in one record."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from gptj_serve import run_dir
from gptj_serve.errors import StartupError, is_failure
from gptj_serve.logs import log_event

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def start_failures(directory: Path) -> Iterator[None]:
    """Leave the launcher the reason when what is entered fails, and end the process with exit code 1.

    Args:
        directory: Private directory of this service.

    Raises:
        SystemExit: Something failed.
    """
    try:
        yield
    except BaseException as error:
        if not is_failure(error):
            raise
        reason = str(error)
        if not isinstance(error, StartupError):  # nothing that was foreseen: where it happened matters
            log_event(logger, "unexpected_error", "unexpected error", level=logging.ERROR, error=error)
            reason = f"the front could not start: {type(error).__name__}: {error}"
        run_dir.tell_start_failure(directory, reason)
        sys.exit(1)
