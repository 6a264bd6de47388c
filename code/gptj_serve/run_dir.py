"""The private directory of one running service: sockets and generated configuration."""

import os
import tempfile
from pathlib import Path

from gptj_serve.errors import StartupError

MAX_SOCKET_PATH_BYTES = 100
"""The kernel takes 107; the front's own sockets have longer names than ours."""


def make() -> Path:
    """Make the directory, readable by this user alone, where socket paths are short enough.

    Raises:
        StartupError: There is no folder for temporary files that can be written.
    """
    try:
        root = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise StartupError(
            f"{error.strerror}: one that can be written is needed (docker run --tmpfs /tmp)"
        ) from None
    if len(str(root)) > MAX_SOCKET_PATH_BYTES - 60:
        root = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix="gptj-", dir=root))


def engine_socket(directory: Path) -> Path:
    """Path of the engine's socket."""
    return directory / "engine.sock"


def template_socket(directory: Path) -> Path:
    """Path of the socket of the process that renders the chat template; there is none without a template."""
    return directory / "template.sock"


def tell_start_failure(directory: Path, reason: str) -> None:
    """Leave the launcher the reason why a process of the front cannot start."""
    path = _start_failure(directory)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(reason, encoding="utf-8")
    draft.replace(path)  # what is there is whole


def start_failure(directory: Path) -> str | None:
    """The reason that a process of the front has left; None if there is none."""
    try:
        return _start_failure(directory).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _start_failure(directory: Path) -> Path:
    return directory / "start-failure"


ENV_NAME = "SERVE_RUN_DIR"
"""How the launcher tells a front's workers where the directory is."""
