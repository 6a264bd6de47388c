"""Turns a checkpoint into safetensors shards with no more than a piece of a tensor in memory.

A shard has its name only when it is whole and on the disk, so an interrupted conversion resumes after the
last whole shard.
"""

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from gptj_serve.aws.common.console import size
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.model.files import INDEX, SINGLE
from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import read_json
from gptj_serve.models.checkpoint_files import read_safetensors
from gptj_serve.models.config import CONFIG
from gptj_serve.models.families import shapes_of
from gptj_serve.models.match import check_tensors
from gptj_serve.models.model_dir import BESIDE_THE_WEIGHTS, Checkpoint, find_checkpoint
from gptj_serve.models.sources import Source, open_sources

_NAME_BY_DTYPE = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
_PIECE_BYTES = 32 << 20
_SPARE_BYTES = 1 << 30
"""Bytes that are left free on the disk."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it will be written.

    Attributes:
        name: The tensor's full name.
        shape: The tensor's dimensions.
        dtype: The type of its numbers in the shard.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """How many bytes it takes in the shard."""
        return math.prod(self.shape) * self.dtype.itemsize


Shards = Mapping[str, Sequence[Tensor]]
"""The tensors of each file, by the file's name."""


def plan_shards(tensors: Sequence[Tensor], shard_bytes: int) -> dict[str, list[Tensor]]:
    """Distribute tensors, in their order, to files of a limited size; a larger tensor has its own file."""
    groups: list[list[Tensor]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if groups[-1] and tensor.num_bytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(tensor)
        room -= tensor.num_bytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    names = (f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1))
    return dict(zip(names, groups, strict=True))


@contextlib.contextmanager
def open_conversion(
    checkpoint: Checkpoint, keep_dtype: bool, shard_bytes: int
) -> Iterator[tuple[Mapping[str, Source], dict[str, list[Tensor]]]]:
    """Open a checkpoint's files, and plan what they become.

    Yields:
        Where each tensor is read, by its name; and the shards.

    Raises:
        StartupError: The files do not hold the model any more, or were changed meanwhile.
    """
    with open_sources(checkpoint) as sources:
        # this is the order in which the model uses them; a head that is stored though it is tied comes last
        names = [name for name in shapes_of(checkpoint.architecture) if name in sources]
        names += [name for name in sources if name not in names]
        tensors = [
            Tensor(name, sources[name].shape, _stored_dtype(sources[name].dtype, keep_dtype))
            for name in names
        ]
        yield sources, plan_shards(tensors, shard_bytes)


def _stored_dtype(dtype: torch.dtype, keep_dtype: bool) -> torch.dtype:
    # eight-bit floats become float16 in any case, as nothing gains by them
    return dtype if keep_dtype and dtype in _NAME_BY_DTYPE else torch.float16


def convert(
    checkpoint: Checkpoint,
    directory: Path,
    bar: Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]],
    *,
    keep_dtype: bool,
    shard_bytes: int,
) -> Checkpoint:
    """Write a checkpoint as shards, with the files beside its weights, and check what was written.

    Args:
        checkpoint: The checkpoint to convert; it is only read.
        directory: Where the shards go; whole shards that are there already are kept.
        bar: Shows progress; gets the number of all bytes.
        keep_dtype: Weights keep their type; otherwise they become float16.
        shard_bytes: The largest size of a file.

    Returns:
        The converted checkpoint.

    Raises:
        CommandError: The disk is too small, a weight does not fit float16, or another process converts it.
        StartupError: The checkpoint is broken or was changed meanwhile.
        OSError: The directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory), open_conversion(checkpoint, keep_dtype, shard_bytes) as (sources, shards):
        missing = {name: tensors for name, tensors in shards.items() if not (directory / name).exists()}
        todo_bytes = sum(tensor.num_bytes for tensors in missing.values() for tensor in tensors)
        for partial in directory.glob("*.partial"):
            partial.unlink()
        _check_room(directory, todo_bytes)
        if missing:
            with bar(todo_bytes) as add:
                for name, tensors in missing.items():
                    _write_shard(directory / name, tensors, sources, add)
        _write_index(directory, shards)
        _copy_the_rest(checkpoint, directory, keep_dtype)
    return _checked(directory, shards)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"{directory}: another upload-model converts this model there",
                "wait for it, or pass another --work-dir",
            ) from None
        yield


def _check_room(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes and free_bytes < needed_bytes + _SPARE_BYTES:
        raise CommandError(
            f"{directory}: the converted weights take {size(needed_bytes)} and 1 GB to spare, "
            f"{size(free_bytes)} are free",
            "pass --work-dir with a directory on a larger disk",
        )


def _write_shard(
    path: Path, tensors: Sequence[Tensor], sources: Mapping[str, Source], add: Callable[[int], None]
) -> None:
    """Write a file under another name first, so that a file with its name is whole."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            _write_tensor(file, tensor, sources[tensor.name], add)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _header(tensors: Sequence[Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": _NAME_BY_DTYPE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the numbers begin at a multiple of their size
    return len(header).to_bytes(8, "little") + header


def _write_tensor(file: BinaryIO, tensor: Tensor, source: Source, add: Callable[[int], None]) -> None:
    end = math.prod(source.shape) * source.dtype.itemsize
    buffer_N = torch.empty(min(_PIECE_BYTES, end), dtype=torch.uint8)
    for first_byte in range(0, end, _PIECE_BYTES):
        piece_N = buffer_N[: end - first_byte]
        source.read(first_byte, piece_N)
        numbers_N = piece_N.view(source.dtype)
        written_N = numbers_N.to(tensor.dtype)
        if written_N.dtype != source.dtype and not torch.isfinite(written_N).all():
            raise _no_number(tensor, numbers_N)
        file.write(written_N.view(torch.uint8).numpy().data)
        add(written_N.nbytes)


def _no_number(tensor: Tensor, numbers_N: torch.Tensor) -> CommandError:
    finite_N = numbers_N[torch.isfinite(numbers_N)].abs()
    if len(finite_N) < len(numbers_N):
        return CommandError(
            f"{tensor.name} holds NaN or infinity: the checkpoint is damaged", "fetch it again"
        )
    return CommandError(
        f"{tensor.name} has a weight of {finite_N.max().item():g}, more than float16 can hold "
        f"({torch.finfo(tensor.dtype).max:g})",
        "--dtype keep uploads the weights in their own type",
    )


def _write_index(directory: Path, shards: Shards) -> None:
    if SINGLE in shards:
        return
    weight_map = {tensor.name: name for name, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.num_bytes for tensors in shards.values() for tensor in tensors)
    _write_text(
        directory / INDEX,
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1, sort_keys=True),
    )


def _copy_the_rest(checkpoint: Checkpoint, directory: Path, keep_dtype: bool) -> None:
    for name in BESIDE_THE_WEIGHTS:
        if (checkpoint.directory / name).is_file():
            shutil.copyfile(checkpoint.directory / name, directory / name)
    config = read_json(checkpoint.directory / CONFIG)
    if not keep_dtype:
        config |= {key: "float16" for key in ("torch_dtype", "dtype") if key in config}
        _write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _checked(directory: Path, shards: Shards) -> Checkpoint:
    """Read the converted model as serving reads it.

    Raises:
        StartupError: It is not the model that should have been written.
    """
    checkpoint = find_checkpoint(directory, option="")
    stored_tensors = read_safetensors(checkpoint.files).tensors
    found = check_tensors(stored_tensors, shapes_of(checkpoint.architecture), directory)
    for name, tensors in shards.items():
        for tensor in tensors:
            stored = found.pop(tensor.name, None)
            wanted = (name, tensor.shape, _NAME_BY_DTYPE[tensor.dtype])
            if stored is None or (stored.path.name, stored.shape, stored.dtype) != wanted:
                raise StartupError(
                    f"{directory / name}: not as it was written: delete it, and run this again"
                )
    if found:
        raise StartupError(
            f"{directory}: tensors that nobody wrote: {', '.join(found)}; delete the directory"
        )
    return checkpoint
