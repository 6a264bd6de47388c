"""Safetensors files' headers, checked as the format's own library checks them."""

import json
import math
from pathlib import Path
from typing import Any

from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import GIT_LFS_POINTER, check_regular
from gptj_serve.models.tensors import StoredTensor

_MAX_HEADER_BYTES = 100_000_000  # this is the format's own limit
_FLOAT_BYTES = {"F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
# the format also knows these types, which the causal masks of old checkpoints have
_OTHER_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
_LFS_POINTER = GIT_LFS_POINTER.encode()


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read the tensors of a file, by name.

    The file is eight bytes of header length (little-endian), the header (JSON), then the tensors.

    Raises:
        StartupError: It is no safetensors file, is truncated, or its tensors overlap or leave holes.
        OSError: It cannot be read.
    """
    actual_bytes = check_regular(path)
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = int.from_bytes(start, "little")
        if len(start) < 8 or header_bytes > _MAX_HEADER_BYTES:
            raise not_weights(path, start + file.read(32), "a safetensors file", actual_bytes)
        header = file.read(header_bytes)
    if len(header) < header_bytes:
        raise truncated(path, f"more than {8 + header_bytes}", actual_bytes)
    tensors = _parse_header(path, header)
    expected_bytes = _check_places(path, tensors, 8 + header_bytes)
    if actual_bytes != expected_bytes:
        raise truncated(path, str(expected_bytes), actual_bytes)
    return tensors


def _parse_header(path: Path, header: bytes) -> dict[str, StoredTensor]:
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", None)
        if metadata is not None and not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ must be strings by name")
        return {name: _parse_entry(path, entry, 8 + len(header)) for name, entry in entries.items()}
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise _corrupt(path, str(error)) from error


def _parse_entry(path: Path, entry: dict[str, Any], data_offset: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"bad numbers in {entry}")
    dtype = entry["dtype"]
    item_bytes = (_FLOAT_BYTES | _OTHER_BYTES).get(dtype)
    if item_bytes is None:
        raise ValueError(f"numbers of a type that is not supported, {dtype!r}")
    if end - begin != math.prod(shape) * item_bytes:
        raise ValueError(f"{end - begin} bytes for {dtype} {list(shape)}")
    return StoredTensor(path, shape, dtype in _FLOAT_BYTES, dtype, data_offset + begin, end - begin)


def _check_places(path: Path, tensors: dict[str, StoredTensor], data_offset: int) -> int:
    """Check that each tensor begins where the one before it ends; returns where the last one ends."""
    end = data_offset
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise _corrupt(path, f"{name} begins at byte {tensor.offset - data_offset} and {what}")
        end += tensor.num_bytes
    return end


def _corrupt(path: Path, why: str) -> StartupError:
    return StartupError(f"{path}: the safetensors header is corrupt: {why}; copy or save it again")


def truncated(path: Path, expected_bytes: str, actual_bytes: int) -> StartupError:
    """The error for a file that ends too early, or too late."""
    return StartupError(
        f"{path}: expected {expected_bytes} bytes by its own header, found {actual_bytes}: "
        "the file is truncated or corrupt; copy it again"
    )


def not_weights(path: Path, start: bytes, expected: str, actual_bytes: int) -> StartupError:
    """The error for a file that is something else, which its first bytes show."""
    if start.startswith(_LFS_POINTER):
        return StartupError(f"{path}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    return StartupError(
        f"{path}: not {expected} ({actual_bytes} bytes): truncated, corrupt or another format; copy it again"
    )
