"""Makes a docker configuration for one push: the user's own is neither read for credentials nor written."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "gptj-serve-docker-"


@contextlib.contextmanager
def private_config(host: str) -> Iterator[Path]:
    """A folder for logging in to a registry, which only this user can read and which is deleted afterwards.

    Args:
        host: The registry's name.
    """
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as name:
        folder = Path(name)
        _fill(folder, host, _users_config())
        yield folder


def remove_leftovers() -> None:
    """Remove the folders that killed processes left, because they have a password that is valid for hours."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        found = re.match(rf"{PREFIX}(\d+)-", folder.name)
        if found and not _is_running(int(found[1])) and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _users_config() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def _fill(folder: Path, host: str, users: Path) -> None:
    # without an entry, docker would look for a keychain of this machine and leave the token there
    config: dict[str, object] = {"auths": {host: {}}}
    with contextlib.suppress(OSError, ValueError):
        # these say which engine is meant
        config["currentContext"] = json.loads((users / "config.json").read_text())["currentContext"]
    (folder / "config.json").write_text(json.dumps(config))
    if (users / "contexts").is_dir():
        (folder / "contexts").symlink_to((users / "contexts").absolute())


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
