"""Reads what a checkpoint's files hold, names and shapes alone, without loading a weight.

A broken, truncated or malicious file is a `StartupError` that names the file and what is wrong.
"""

import json
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gptj_serve.errors import StartupError

if TYPE_CHECKING:
    import torch

SAFETENSORS = "safetensors"
PICKLE = "pickle"

# in the order in which Transformers looks for them
_SINGLE_AND_INDEX = (
    (SAFETENSORS, "model.safetensors", "model.safetensors.index.json"),
    (PICKLE, "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
NAMES = tuple(name for _, *names in _SINGLE_AND_INDEX for name in names)
"""A directory with one of these files holds a checkpoint."""

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_FLOAT_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
# what else the format knows: the causal masks of old checkpoints are of such types
_OTHER_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says of one tensor.

    Attributes:
        path: The file.
        shape: Its dimensions.
        is_float: Its numbers are of a floating type.
    """

    path: Path
    shape: tuple[int, ...]
    is_float: bool


@dataclass(frozen=True, slots=True)
class StoredTensor(TensorInfo):
    """Where the numbers of a safetensors file's tensor are: row-major, little-endian, without gaps.

    Attributes:
        dtype: The format's name of their type, "F16" for instance.
        offset: Of the first byte, from the beginning of the file.
        num_bytes: How many there are.
    """

    dtype: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class MappedTensor(TensorInfo):
    """A pickle's tensor.

    Attributes:
        tensor: Its values stay on the disk, mapped.
    """

    tensor: "torch.Tensor"


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


def find_files(directory: Path) -> CheckpointFiles:
    """The weight files that Transformers would load; safetensors come first.

    Raises:
        StartupError: None is there, or an index is broken or lists shards that are absent.
    """
    for kind, single, index in _SINGLE_AND_INDEX:
        if (directory / single).is_file():
            return CheckpointFiles(kind, (directory / single,))
        if (directory / index).is_file():
            return CheckpointFiles(kind, _shards(directory / index))
    raise StartupError(f"{directory}: no weights; expected one of {', '.join(NAMES)}")


def read_tensors(files: CheckpointFiles) -> dict[str, TensorInfo]:
    """Every tensor of the checkpoint by name, without its values.

    Raises:
        StartupError: A file is unreadable, truncated, corrupt, or holds more than tensors; or two files
            hold a tensor of one name.
    """
    if files.format == SAFETENSORS:
        return dict(read_safetensors(files))
    return dict(read_pickles(files))


def read_safetensors(files: CheckpointFiles) -> dict[str, StoredTensor]:
    """Every tensor's place in the checkpoint's safetensors files. Raises as `read_tensors`."""
    return _read_all(files, _read_safetensors)


def read_pickles(files: CheckpointFiles) -> dict[str, MappedTensor]:
    """Every tensor of the checkpoint's pickles; no code of theirs is run. Raises as `read_tensors`."""
    return _read_all(files, _read_pickle)


def _read_all(files: CheckpointFiles, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    tensors: dict[str, T] = {}
    for path in files.paths:
        try:
            found = read(path)
        except OSError as error:
            raise StartupError(f"{path}: cannot be read: {error.strerror or error}") from error
        if twice := [name for name in found if name in tensors]:
            raise StartupError(f"{path}: {tensors[twice[0]].path.name} holds these as well: {some(twice)}")
        tensors |= found
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        StartupError: The file is unreadable or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise StartupError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def some(items: list[str], limit: int = 5) -> str:
    """The first few of many names, and how many there are in all."""
    more = f", … ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise StartupError(f'{index}: expected "weight_map": an object of tensor names and file names')
    names = sorted({str(name) for name in weight_map.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise StartupError(f"{index}: lists files outside its directory: {some(outside)}")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise StartupError(f"{index}: lists files that are not there: {some(absent)}")
    return tuple(index.parent / name for name in names)


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Read one file's header.

    The file is eight bytes of header length (little-endian), the header (JSON), then the tensors.
    """
    actual_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = int.from_bytes(start, "little")
        if len(start) < 8 or header_bytes > _MAX_HEADER_BYTES:
            raise _not_weights(path, start + file.read(32), "a safetensors file", actual_bytes)
        header = file.read(header_bytes)
    if len(header) < header_bytes:
        raise _truncated(path, f"more than {8 + header_bytes}", actual_bytes)
    tensors = _parse_header(path, header)
    ends = (tensor.offset + tensor.num_bytes for tensor in tensors.values())
    expected_bytes = max(ends, default=8 + header_bytes)
    if actual_bytes != expected_bytes:
        raise _truncated(path, str(expected_bytes), actual_bytes)
    return tensors


def _parse_header(path: Path, header: bytes) -> dict[str, StoredTensor]:
    """The tensors of a safetensors header."""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        return {name: _parse_entry(path, entry, 8 + len(header)) for name, entry in entries.items()}
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise StartupError(f"{path}: the safetensors header is corrupt: {error}") from error


def _parse_entry(path: Path, entry: dict[str, Any], data_offset: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"bad numbers in {entry}")
    dtype = entry["dtype"]
    item_bytes = (_FLOAT_BYTES | _OTHER_BYTES)[dtype]
    if end - begin != math.prod(shape) * item_bytes:
        raise ValueError(f"{end - begin} bytes for {dtype} {list(shape)}")
    return StoredTensor(path, shape, dtype in _FLOAT_BYTES, dtype, data_offset + begin, end - begin)


def _read_pickle(path: Path) -> dict[str, MappedTensor]:
    """Unpickle one PyTorch checkpoint without running code; the values stay on the disk."""
    import torch  # here, since safetensors need none of it

    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(40)
        expected = "a whole checkpoint of PyTorch 1.6 or later"
        raise _not_weights(path, start, expected, path.stat().st_size)
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        raise StartupError(f"{path}: {_why_refused(error)}") from error
    if not isinstance(tensors, dict):
        raise StartupError(f"{path}: expected a dictionary of tensors, found {type(tensors).__name__}")
    if other := [str(name) for name, value in tensors.items() if not isinstance(value, torch.Tensor)]:
        raise StartupError(f"{path}: expected a dictionary of tensors; these are none: {some(other)}")
    return {
        str(name): MappedTensor(path, tuple(tensor.shape), tensor.is_floating_point(), tensor)
        for name, tensor in tensors.items()
    }


def _why_refused(error: Exception) -> str:
    # PyTorch's own message tells the reader to switch the protection off: never pass it on
    if "weights_only" in str(error) or "Weights only" in str(error):
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found.group(1)})" if found else ""
        return f"refused: it asks for code to be run{what}, which weights never need; nothing was run"
    return f"the PyTorch checkpoint is corrupt: {str(error).splitlines()[0]}"


def _truncated(path: Path, expected_bytes: str, actual_bytes: int) -> StartupError:
    return StartupError(
        f"{path}: expected {expected_bytes} bytes by its own header, found {actual_bytes}: "
        "the file is truncated or corrupt; copy it again"
    )


def _not_weights(path: Path, start: bytes, expected: str, actual_bytes: int) -> StartupError:
    if start.startswith(_LFS_POINTER):
        return StartupError(f"{path}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    return StartupError(
        f"{path}: not {expected} ({actual_bytes} bytes): truncated, corrupt or another format"
    )
