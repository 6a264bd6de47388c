"""Reads PyTorch's pickles without running their code, and with no more memory than their size.

The format since PyTorch 1.6 is a zip file whose numbers can be mapped. Older files have one pickle after
another and then the numbers, which can only be read.
"""

import contextlib
import re
import resource
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gptj_serve.errors import StartupError, first_line
from gptj_serve.host.regular_files import check_regular, some
from gptj_serve.models.headers import not_weights, truncated
from gptj_serve.models.remedies import extract_command
from gptj_serve.models.tensors import Contents, PickledTensor

_OLD_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
"""How a file from before PyTorch 1.6 begins, after the pickle's protocol number."""

_SPARE_BYTES = 512 << 20
"""How many bytes unpickling may take beside the file, for objects."""


def read_pickle(path: Path, *, with_values: bool) -> Contents[PickledTensor]:
    """Read the tensors of a checkpoint file.

    Args:
        path: The file.
        with_values: Read the numbers of files from before PyTorch 1.6, all of them at once; otherwise their
            tensors only have a shape and a type. The numbers of later files are always mapped.

    Raises:
        StartupError: It is no such file, is damaged, asks for code to be run, or holds no tensors.
        OSError: It cannot be read.
    """
    actual_bytes = check_regular(path)
    with path.open("rb") as file:
        start = file.read(40)
    if zipfile.is_zipfile(path):
        _check_entries(path, actual_bytes)
        content = _load(path, actual_bytes, map_location="cpu", mmap=True)
    elif _OLD_MAGIC in start[:16]:
        content = _load_old(path, actual_bytes, with_values)
    else:
        raise not_weights(path, start, "a whole PyTorch checkpoint", actual_bytes)
    if not isinstance(content, Mapping):
        raise _not_tensors(path, f"found {type(content).__name__}")
    return _contents(path, content)


def _check_entries(path: Path, actual_bytes: int) -> None:
    """Refuse compressed entries: PyTorch compresses nothing, so they are an attack on memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError) as error:
        raise StartupError(f"{path}: the PyTorch checkpoint is corrupt: {error}; copy it again") from error
    compressed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    claimed_bytes = sum(entry.file_size for entry in entries)
    if compressed or claimed_bytes > actual_bytes:
        raise StartupError(
            f"{path}: refused: its {actual_bytes} bytes would become {claimed_bytes} in memory "
            "(PyTorch stores checkpoints uncompressed); save it again with torch.save"
        )


def _load_old(path: Path, actual_bytes: int, with_values: bool) -> Any:
    with torch.serialization.skip_data():
        content = _load(path, actual_bytes, map_location="meta")
    values = content.values() if isinstance(content, Mapping) else ()
    storages = (one.untyped_storage() for one in _tensors(values))
    claimed_bytes = sum(
        {storage._cdata: storage.nbytes() for storage in storages}.values()
    )  # shared tensors count once
    if claimed_bytes > actual_bytes:
        raise truncated(path, f"more than {claimed_bytes}", actual_bytes)
    return _load(path, actual_bytes, map_location="cpu") if with_values else content


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _load(path: Path, actual_bytes: int, **options: Any) -> Any:
    try:
        with _bounded_memory(actual_bytes + _SPARE_BYTES):
            return torch.load(path, weights_only=True, **options)
    except OSError:
        raise
    except Exception as error:
        raise StartupError(f"{path}: {_why_refused(error)}") from error


@contextlib.contextmanager
def _bounded_memory(more_bytes: int) -> Iterator[None]:
    """Let the process take no more than a number of bytes of address space beside what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # elsewhere than on Linux, no limit is better than a wrong one
        yield
        return
    limit = pages * resource.getpagesize() + more_bytes
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _why_refused(error: Exception) -> str:
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "refused: it takes more memory than the whole file has; save it again with torch.save"
    # PyTorch's own message says how to switch the protection off, so it is never passed on
    if "weights_only" in str(error) or "Weights only" in str(error):
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found.group(1)})" if found else ""
        return (
            f"refused: it asks for code to be run{what}, which weights never need; nothing was run. Where "
            "it was made: model.save_pretrained(DIRECTORY) saves the weights alone"
        )
    return f"the PyTorch checkpoint is corrupt: {first_line(error)}; copy it again"


def _contents(path: Path, content: Mapping[Any, Any]) -> Contents[PickledTensor]:
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    others = [str(name) for name in content if not isinstance(content[name], torch.Tensor)]
    if not tensors:
        raise _not_tensors(path, _where_the_weights_are(path, content, others))
    notes = (f"{path}: these are no tensors and are ignored: {some(others)}",) if others else ()
    return Contents({name: _describe(path, tensor) for name, tensor in tensors.items()}, notes)


def _describe(path: Path, tensor: torch.Tensor) -> PickledTensor:
    is_plain = tensor.layout == torch.strided and not tensor.is_quantized
    return PickledTensor(path, tuple(tensor.shape), is_plain and tensor.is_floating_point(), tensor)


def _where_the_weights_are(path: Path, content: Mapping[Any, Any], others: list[str]) -> str:
    """Where the weights are in a file without tensors, which may be a training checkpoint."""
    inner = {
        name: len(_tensors(value.values())) for name, value in content.items() if isinstance(value, Mapping)
    }
    name = max(inner, key=lambda one: inner[one], default=None)
    if name is None or not inner[name]:
        return f"these are none: {some(others)}"
    return (
        f"found a training checkpoint, with the weights in its {name!r}; take them out: "
        f"{extract_command([path], path.parent, f'[{name!r}]')}"
    )


def _not_tensors(path: Path, found: str) -> StartupError:
    return StartupError(f"{path}: expected a dictionary of tensors; {found}")
