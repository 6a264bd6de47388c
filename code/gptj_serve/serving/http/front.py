"""The HTTP front as the launcher sees it: how it is started, and whether it answers."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

# ruff: noqa: ARG001 - every front has these functions, and the other one needs the arguments
from gptj_serve import run_dir
from gptj_serve.errors import StartupError
from gptj_serve.request import ModelInfo
from gptj_serve.serving.start import answer_status, environment
from gptj_serve.settings import Settings

CAN_WAIT = True
"""The front is started beside the engine, and listens when it is told that the engine is ready."""


def check(env: Mapping[str, str]) -> None:
    """Check nothing, as nothing outside of the package is needed."""


def prepare(go_fd: int, directory: Path, env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command and the environment to start it with.

    Args:
        go_fd: Descriptor of the pipe that tells it to listen.
        directory: Private directory of this service.
        env: Environment to start from.
    """
    command = [sys.executable, "-m", "gptj_serve.serving.http", "--go-fd", str(go_fd)]
    return command, environment(env, directory)


def warm_up(settings: Settings, info: ModelInfo, directory: Path, wait: Callable[[], None]) -> None:
    """Send a request through the front that is refused before it reaches the engine, and is not counted.

    Raises:
        StartupError: The front does not answer as it should.
    """
    wait()
    status = answer_status(
        settings,
        "POST",
        "/invocations",
        b'{"inputs": "a", "parameters": {"top_p": 9}}',
        {run_dir.WARM_UP_HEADER: run_dir.warm_up_key(directory)},
    )
    if status != 400:
        raise StartupError(f"the front answers {status}; see the log above")


def has_lost_its_workers(directory: Path) -> bool:
    """Always false: the front is one process, whose end the launcher sees."""
    return False
