"""Reads the names and shapes in a checkpoint's files, without loading a weight.

A broken, truncated or malicious file is a `StartupError` that names the file and what is wrong.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import read_json, some, unreadable
from gptj_serve.models.headers import read_header
from gptj_serve.models.tensors import Contents, PickledTensor, StoredTensor, TensorInfo

SAFETENSORS = "safetensors"
PICKLE = "pickle"

# in the order in which Transformers looks for them
_SINGLE_AND_INDEX = (
    (SAFETENSORS, "model.safetensors", "model.safetensors.index.json"),
    (PICKLE, "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
NAMES = tuple(name for _, *names in _SINGLE_AND_INDEX for name in names)
"""A directory with one of these files holds a checkpoint."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A checkpoint's weight files.

    Attributes:
        format: `SAFETENSORS` or `PICKLE`.
        paths: The files that hold tensors, shards in the order of their names.
    """

    format: str
    paths: tuple[Path, ...]


T = TypeVar("T", bound=TensorInfo)


def find_files(directory: Path) -> CheckpointFiles | None:
    """The weight files that Transformers would load, safetensors first; None if there are none.

    Raises:
        StartupError: An index is broken or lists shards that are absent, or a file cannot be read.
    """
    for kind, single, index in _SINGLE_AND_INDEX:
        if (directory / single).is_file():
            return CheckpointFiles(kind, (directory / single,))
        if (directory / index).is_file():
            return CheckpointFiles(kind, _shards(directory / index))
    return None


def read_contents(files: CheckpointFiles) -> Contents[StoredTensor] | Contents[PickledTensor]:
    """Every tensor of the checkpoint by name, without its values, and what was passed over.

    If two files hold a tensor of the same name, the later one counts, as in Transformers.

    Raises:
        StartupError: A file is unreadable, truncated, corrupt, or asks for code to be run.
    """
    return read_safetensors(files) if files.format == SAFETENSORS else read_pickles(files, with_values=False)


def read_safetensors(files: CheckpointFiles) -> Contents[StoredTensor]:
    """Every tensor's place in the checkpoint's safetensors files. Raises as `read_contents`."""
    return _read_all(files, lambda path: Contents(read_header(path)))


def read_pickles(files: CheckpointFiles, *, with_values: bool) -> Contents[PickledTensor]:
    """Every tensor of the checkpoint's pickles. Raises as `read_contents`.

    Args:
        files: The checkpoint's.
        with_values: Read the numbers of files from before PyTorch 1.6; those of later files are mapped.
    """
    from gptj_serve.models.pickles import read_pickle  # here: safetensors need no torch

    return _read_all(files, lambda path: read_pickle(path, with_values=with_values))


def unmapped_bytes(files: CheckpointFiles) -> int:
    """The size of the files that can only be read as a whole, which are pickles from before PyTorch 1.6."""
    pickles = files.paths if files.format == PICKLE else ()
    return sum(path.stat().st_size for path in pickles if not zipfile.is_zipfile(path))


def _read_all(files: CheckpointFiles, read: Callable[[Path], Contents[T]]) -> Contents[T]:
    tensors: dict[str, T] = {}
    notes: list[str] = []
    for path in files.paths:
        try:
            found = read(path)
        except OSError as error:
            raise unreadable(path, error) from error
        notes += found.notes
        if twice := [name for name in found.tensors if name in tensors]:
            others = some(sorted({tensors[name].path.name for name in twice}))
            notes.append(f"{path}: {others} holds these as well and is ignored there: {some(twice)}")
        tensors |= found.tensors
    return Contents(tensors, tuple(notes))


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise StartupError(f'{index}: expected "weight_map": an object of tensor names and file names')
    names = sorted({str(name) for name in weight_map.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise StartupError(f"{index}: lists files outside its directory: {some(outside)}")
    if absent := [name for name in names if not (index.parent / name).exists()]:
        raise StartupError(f"{index}: lists files that are not there: {some(absent)}; copy these too")
    return tuple(index.parent / name for name in names)
