"""The private directory of one running service: sockets and generated configuration."""

import tempfile
from pathlib import Path

MAX_SOCKET_PATH_BYTES = 100
"""The kernel takes 107; the front's own sockets have longer names than ours."""


def make() -> Path:
    """Make the directory, readable by this user alone, where socket paths are short enough."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) > MAX_SOCKET_PATH_BYTES - 60:
        root = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix="gptj-", dir=root))


def engine_socket(directory: Path) -> Path:
    """Path of the engine's socket."""
    return directory / "engine.sock"


ENV_NAME = "SERVE_RUN_DIR"
"""How the launcher tells a front's workers where the directory is."""
