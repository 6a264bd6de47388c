"""The private directory of one running service: sockets and generated configuration."""

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


ENV_NAME = "SERVE_RUN_DIR"
"""How the launcher tells a front's workers where the directory is."""
