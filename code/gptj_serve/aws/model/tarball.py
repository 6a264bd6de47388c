"""Writes ``model.tar.gz``. The same model gives the same bytes with the same version of zlib."""

import gzip
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from gptj_serve.aws.common.console import size
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.model.files import ModelFile

NAME = "model.tar.gz"
LEVEL = 0
"""The gzip level 0 stores files as they are. Level 1 makes weights 7 % smaller, but packs 34 MB/s on one core
instead of 452, and each new instance would unpack 172 MB/s instead of 565."""


def write(path: Path, files: Sequence[ModelFile], add: Callable[[int], None]) -> None:
    """Write the archive, which has its name only when it is whole.

    Args:
        path: The archive; its directory is made if needed.
        files: The files, which are put at the archive's top level.
        add: Gets the number of bytes that were packed.

    Raises:
        CommandError: The disk is too small.
        OSError: A file cannot be read, or the archive not written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_room(path.parent, sum(file.num_bytes for file in files))
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as raw:
        # so that the header has neither a name nor a time
        with gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as packed, _open(packed) as archive:
            for file in sorted(files, key=lambda one: one.name):
                _add_file(archive, file, add)
        raw.flush()
        os.fsync(raw.fileno())
    partial.replace(path)


def _open(packed: gzip.GzipFile) -> tarfile.TarFile:
    return tarfile.TarFile(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT)


def _add_file(archive: tarfile.TarFile, file: ModelFile, add: Callable[[int], None]) -> None:
    entry = tarfile.TarInfo(file.name)
    entry.size, entry.mode = file.num_bytes, 0o644
    with file.path.open("rb") as source:
        archive.addfile(entry, _Counted(source, add))  # type: ignore[arg-type]  # it only reads


class _Counted:
    """A file that counts how much was read of it."""

    def __init__(self, file: IO[bytes], add: Callable[[int], None]) -> None:
        self._file, self._add = file, add

    def read(self, num_bytes: int) -> bytes:
        data = self._file.read(num_bytes)
        self._add(len(data))
        return data


def _check_room(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise CommandError(
            f"{directory}: the archive takes up to {size(needed_bytes)}, {size(free_bytes)} are free",
            "pass --work-dir with a directory on a larger disk",
        )
