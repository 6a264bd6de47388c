"""Reads a checkpoint's numbers from byte ranges of safetensors files, or from mapped pickles."""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import unreadable
from gptj_serve.models.checkpoint_files import SAFETENSORS, read_pickles, read_safetensors
from gptj_serve.models.families import shapes_of
from gptj_serve.models.match import check_tensors
from gptj_serve.models.model_dir import Checkpoint
from gptj_serve.models.tensors import StoredTensor

_DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class Source(Protocol):
    """A tensor of a checkpoint, which several threads may read in pieces.

    Attributes:
        shape: The tensor's dimensions.
        dtype: The type of its numbers in the file.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, first_byte: int, buffer_N: torch.Tensor) -> None:
        """Fill a buffer.

        Args:
            first_byte: Where to begin in the tensor's row-major bytes.
            buffer_N: The buffer, uint8, on the host.

        Raises:
            StartupError: The file, which is named, cannot be read or ends too early.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileSource:
    """A tensor of a safetensors file that is open."""

    stored: StoredTensor
    descriptor: int

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Source`."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        """See `Source`."""
        return _DTYPES[self.stored.dtype]

    def read(self, first_byte: int, buffer_N: torch.Tensor) -> None:
        """See `Source.read`."""
        buffer = buffer_N.numpy().data
        offset = self.stored.offset + first_byte
        while buffer:
            try:
                count = os.preadv(self.descriptor, [buffer], offset)
            except OSError as error:
                raise unreadable(self.stored.path, error) from error
            if count == 0:
                raise StartupError(
                    f"{self.stored.path}: ends at byte {offset}, within a tensor: it was changed since it "
                    "was checked; copy it again"
                )
            buffer, offset = buffer[count:], offset + count


@dataclass(frozen=True, slots=True)
class MappedSource:
    """A tensor of a pickle that is mapped into memory; row-major."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Source`."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """See `Source`."""
        return self.tensor.dtype

    def read(self, first_byte: int, buffer_N: torch.Tensor) -> None:
        """See `Source.read`."""
        bytes_N = self.tensor.view(-1).view(torch.uint8)
        buffer_N.copy_(bytes_N[first_byte : first_byte + len(buffer_N)])


@contextlib.contextmanager
def open_sources(checkpoint: Checkpoint) -> Iterator[dict[str, Source]]:
    """Read the files' headers again and open the files; at the end, check that they are still the same.

    Yields:
        The source of every tensor of the model, by its full name.

    Raises:
        StartupError: The files do not hold the model any more, or were changed meanwhile.
    """
    paths, expected = checkpoint.files.paths, shapes_of(checkpoint.architecture)
    with contextlib.ExitStack() as stack:
        opened = {path: stack.enter_context(_opened(path)).fileno() for path in paths}
        before = {path: _signature(descriptor) for path, descriptor in opened.items()}
        if checkpoint.files.format == SAFETENSORS:
            found = read_safetensors(checkpoint.files).tensors
            stored = check_tensors(found, expected, checkpoint.directory)
            yield {name: FileSource(tensor, opened[tensor.path]) for name, tensor in stored.items()}
        else:
            pickled = read_pickles(checkpoint.files, with_values=True).tensors
            mapped = check_tensors(pickled, expected, checkpoint.directory)
            # only a tensor that was saved transposed is copied here
            yield {name: MappedSource(one.tensor.contiguous()) for name, one in mapped.items()}
        for path, descriptor in opened.items():
            if _signature(descriptor) != before[path]:
                raise StartupError(f"{path}: was changed while it was loaded; start again when it is whole")


def _opened(path: Path) -> io.FileIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(path, error) from error


def _signature(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
