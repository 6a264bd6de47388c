"""What both fronts need at their start: an environment, a check that they answer, the reason of a failure."""

import contextlib
import http.client
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import gptj_serve
from gptj_serve import run_dir
from gptj_serve.errors import StartupError, is_failure
from gptj_serve.logs import log_event
from gptj_serve.settings import Settings

logger = logging.getLogger(__name__)


def environment(env: Mapping[str, str], directory: Path) -> dict[str, str]:
    """The environment of a front's processes.

    Args:
        env: Environment to start from.
        directory: Private directory of this service.
    """
    python_path = [str(Path(gptj_serve.__file__).parent.parent), env.get("PYTHONPATH", "")]
    return {
        **env,
        "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
        "TOKENIZERS_PARALLELISM": "false",  # a pool of threads only delays a single text
        **run_dir.GIVING_MEMORY_BACK,
        run_dir.ENV_NAME: str(directory),
    }


def answer_status(
    settings: Settings, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
) -> int | None:
    """The status of the front's answer to one request; None if it does not answer within a second."""
    connection = http.client.HTTPConnection(settings.local_host, settings.port, timeout=1)
    with contextlib.closing(connection):
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


def is_listening(settings: Settings) -> bool:
    """Whether the front answers ``GET /ping`` with 200."""
    return answer_status(settings, "GET", "/ping") == 200


@contextlib.contextmanager
def start_failures(directory: Path) -> Iterator[None]:
    """Tell the launcher the reason if what is entered fails, and end the process with exit code 1.

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
        if not isinstance(error, StartupError):  # this was not foreseen, so where it happened matters
            log_event(logger, "unexpected_error", "unexpected error", level=logging.ERROR, error=error)
            reason = f"the front could not start: {type(error).__name__}: {error}"
        run_dir.tell_start_failure(directory, reason)
        sys.exit(1)
