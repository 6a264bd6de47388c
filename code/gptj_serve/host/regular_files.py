"""Reads files that somebody else wrote: only regular ones of a bounded size, with errors that name them."""

import json
import os
import pwd
import shlex
import stat
from pathlib import Path
from typing import Any

from gptj_serve.errors import StartupError

MAX_JSON_BYTES = 16 << 20
"""The largest configuration or index that is read: a thousand times what GPT-J's take."""

GIT_LFS_POINTER = "version https://git-lfs"
"""The beginning of a file that stands for one that was not fetched."""

_KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


def special_kind(mode: int) -> str | None:
    """The kind of a path on which a read might block or never end; None for files and directories."""
    kind = stat.S_IFMT(mode)
    return None if kind in (stat.S_IFREG, stat.S_IFDIR) else _KINDS.get(kind, "no regular file")


def check_regular(path: Path) -> int:
    """Check that a path is a regular file, and no pipe or device, before it is opened.

    Returns:
        The file's size in bytes.

    Raises:
        StartupError: It is something else, or cannot be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
        raise StartupError(f"{path}: is {kind}, expected a regular file")
    return status.st_size


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Read the text of a file in UTF-8.

    Raises:
        StartupError: It is no regular file, too large, unreadable, no UTF-8, or a Git LFS pointer.
    """
    if (num_bytes := check_regular(path)) > max_bytes:
        raise StartupError(f"{path}: {num_bytes} bytes, expected {max_bytes} at most")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise StartupError(f"{path}: not UTF-8: {error}") from error
    if text.startswith(GIT_LFS_POINTER):
        raise StartupError(f"{path}: is a Git LFS pointer, not the file; git lfs pull fetches that")
    return text


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        StartupError: The file is unreadable or holds no JSON object.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise StartupError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def unreadable(path: Path, error: OSError) -> StartupError:
    """The error for a file that cannot be read; with missing permissions, it says what would mend them."""
    said = f"{path}: cannot be read: {error.strerror or error}"
    if not isinstance(error, PermissionError):
        return StartupError(said)
    try:
        status = path.stat()
    except OSError:  # a directory above it is closed to this user
        folder, whose = path.parent, "a directory above it is closed to this user"
    else:
        folder = path if stat.S_ISDIR(status.st_mode) else path.parent
        whose = f"mode {stat.S_IMODE(status.st_mode):04o}, of user {_user(status.st_uid)}"
    return StartupError(
        f"{said} ({whose}; this process is user {_user(os.geteuid())}): "
        f"chmod -R a+rX {shlex.quote(str(folder))}"
    )


def _user(user_id: int) -> str:
    try:
        return f"{user_id} ({pwd.getpwuid(user_id).pw_name})"
    except KeyError:
        return str(user_id)


def some(items: list[str], limit: int = 5) -> str:
    """The first few of many names, and how many there are in all."""
    more = f", … ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
