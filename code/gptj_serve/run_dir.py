"""The private directory of one running service: sockets and generated configuration.

Its owner holds a lock on a file in it. Where nobody holds the lock, the owner was killed; the next start
removes such directories.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gptj_serve.errors import StartupError

MAX_SOCKET_PATH_BYTES = 100
"""The kernel takes 107 bytes, and the front's own sockets have longer names than ours."""
PREFIX = "gptj-"


LOCK = "owner.lock"
WARM_UP_HEADER = "x-serve-warm-up"
"""The header of a warm-up request; its value is `warm_up_key`."""


@contextlib.contextmanager
def private() -> Iterator[Path]:
    """A new directory that only this user can read, with short socket paths; it is removed at exit.

    Directories that killed services of this user have left beside it are removed.

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
    _sweep(root)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.enter_context(_locked(directory))
        yield directory


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lock the directory for its owner. The kernel releases the lock, however the owner ends."""
    draft = directory / f"{LOCK}.draft"
    with draft.open("w") as lock:
        with contextlib.suppress(OSError):  # on a file system without locks, no directory is ever removed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(directory / LOCK)  # a file of this name has been locked
        yield


def _sweep(root: Path) -> None:
    with contextlib.suppress(OSError):
        for directory in root.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if _is_ours(directory):
                    _remove_if_left(directory)


def _is_ours(directory: Path) -> bool:
    found = directory.lstat()  # other users may put links into a folder for everybody
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _remove_if_left(directory: Path) -> None:
    """Remove a directory whose lock nobody holds; one without a lock is being made, or is something else."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(descriptor)


def engine_socket(directory: Path) -> Path:
    """Path of the engine's socket."""
    return directory / "engine.sock"


def template_socket(directory: Path) -> Path:
    """Path of the socket of the process that renders the chat template; it exists only with a template."""
    return directory / "template.sock"


def tokenizer(directory: Path) -> Path:
    """Path of the model's tokenizer, once it has been read."""
    return directory / "tokenizer"


def tell_start_failure(directory: Path, reason: str) -> None:
    """Leave a message for the launcher: why a process of the front cannot start."""
    path = _start_failure(directory)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(reason, encoding="utf-8")
    draft.replace(path)  # the file appears only when it is whole


def start_failure(directory: Path) -> str | None:
    """The reason that a process of the front has left; None if there is none."""
    try:
        return _start_failure(directory).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _start_failure(directory: Path) -> Path:
    return directory / "start-failure"


GIVING_MEMORY_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}
"""Makes a front return the memory of bodies and answers to the system. Without it, glibc raises its threshold
with the first large block, and keeps the blocks that come after it."""

ENV_NAME = "SERVE_RUN_DIR"
"""The variable by which the launcher tells a front's workers where the directory is."""


def warm_up_key(directory: Path) -> str:
    """The key that marks a front's warm-up, which is neither logged nor counted; only this user can read it.

    It is made when it is first asked for.
    """
    path = directory / "warm-up-key"
    if not path.exists():
        path.write_text(secrets.token_urlsafe())
    return path.read_text()
