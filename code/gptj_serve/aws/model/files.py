"""Finds the files of a model directory that an endpoint needs, and their checksums."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gptj_serve.models.model_dir import BESIDE_THE_WEIGHTS, Checkpoint

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_PIECE_BYTES = 4 << 20
_THREADS = 4


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that is uploaded.

    Attributes:
        path: Where the file is on this machine.
        num_bytes: The file's size.
        sha256: SHA-256 of its bytes, in hexadecimal digits.
        crc32: CRC-32 of its bytes, by which S3 checks a whole object however many parts it came in. None
            while the file is still to be made.
    """

    path: Path
    num_bytes: int
    sha256: str
    crc32: int | None

    @property
    def name(self) -> str:
        """The file's name without directories, as a model has none."""
        return self.path.name


def serving_paths(checkpoint: Checkpoint) -> list[Path]:
    """The files of a safetensors checkpoint that an endpoint needs, in the order of their names."""
    is_single = [path.name for path in checkpoint.files.paths] == [SINGLE]
    beside = BESIDE_THE_WEIGHTS if is_single else (*BESIDE_THE_WEIGHTS, INDEX)
    found = [checkpoint.directory / name for name in beside]
    return sorted([*checkpoint.files.paths, *(path for path in found if path.is_file())])


def left_out(directory: Path, wanted: Iterable[Path]) -> list[Path]:
    """The directory's other files, which serving does not read; hidden files are not mentioned."""
    kept = set(wanted)
    others = (path for path in directory.iterdir() if path.is_file() and path not in kept)
    return sorted(path for path in others if not path.name.startswith("."))


def read_all(paths: Sequence[Path], add: Callable[[int], None]) -> list[ModelFile]:
    """Read files for their checksums, several at once.

    Args:
        paths: The files.
        add: Gets the number of bytes that were read; several threads call it.

    Raises:
        OSError: A file cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        pending = [pool.submit(_read, path, add) for path in paths]
        try:
            return [one.result() for one in pending]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def contents_hash(files: Iterable[ModelFile]) -> str:
    """A SHA-256 (hexadecimal) of the names and contents of all files, whatever their order."""
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read(path: Path, add: Callable[[int], None]) -> ModelFile:
    sha256, crc32, num_bytes = hashlib.sha256(), 0, 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
            crc32 = zlib.crc32(piece, crc32)
            num_bytes += len(piece)
            add(len(piece))
    return ModelFile(path, num_bytes, sha256.hexdigest(), crc32)
