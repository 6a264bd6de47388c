"""Packs many small arrays into one buffer, so that one transfer moves them all; neither way waits.

A transfer costs the host a few microseconds whatever its size, and one that is made from a Python list would
wait for the device. The host's side is page-locked if the other is a GPU, which copies from and to such
memory by itself. PyTorch's allocator reuses that memory only when the copies that were started with it have
ended.

Shape suffix: W words of the buffer, 8 bytes each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptj_serve.engine.device_errors import batch_errors

WORD_BYTES = 8
"""Every array starts at a multiple of this, so that it can be viewed as any type."""


@dataclass(frozen=True, slots=True)
class Field:
    """Where an array lies in a buffer of words.

    Attributes:
        start: The array's first word, >= 0.
        num: How many elements it has, >= 0.
        dtype: The elements' type, of at most 8 bytes.
    """

    start: int
    num: int
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        """The word after the array's last one."""
        return self.start + -(-self.num * self.dtype.itemsize // WORD_BYTES)

    def of(self, words_W: torch.Tensor) -> torch.Tensor:
        """The array, a view of the buffer (int64 [W], on any device)."""
        return words_W[self.start : self.stop].view(self.dtype)[: self.num]


class Layout:
    """Places arrays one after the other.

    Attributes:
        num_words: How many words they take so far.
    """

    def __init__(self) -> None:
        self.num_words = 0

    def add(self, num: int, dtype: torch.dtype) -> Field:
        """Add room for one more array."""
        field = Field(self.num_words, num, dtype)
        self.num_words = field.stop
        return field


class Upload:
    """Collects arrays of host values, and then moves all of them in one transfer."""

    def __init__(self) -> None:
        self._layout = Layout()
        self._arrays: list[tuple[Field, Sequence[float] | np.ndarray]] = []

    def add(self, values: Sequence[float] | np.ndarray, dtype: torch.dtype) -> Field:
        """Add an array of int64, float64, or float32, which is rounded once from the float64 values."""
        field = self._layout.add(len(values), dtype)
        self._arrays.append((field, values))
        return field

    def to(self, device: torch.device) -> torch.Tensor:
        """Start the transfer without waiting for it; returns the buffer of all fields, int64 [W]."""
        host_W = torch.empty(self._layout.num_words, dtype=torch.int64, pin_memory=device.type == "cuda")
        words = host_W.numpy()
        for field, values in self._arrays:
            words[field.start : field.stop].view(_NUMPY_TYPES[field.dtype])[: field.num] = values
        return host_W.to(device, non_blocking=True)


class Download:
    """Starts a copy to the host behind all work of the current stream, without waiting for it.

    Args:
        tensor: The tensor to copy, contiguous, on any device. Work that is launched later may overwrite it.
        what: What has made it, for the messages of errors.

    Raises:
        BatchLost, BackendDead: The device failed, here or in work that was started before.
    """

    def __init__(self, tensor: torch.Tensor, what: str) -> None:
        self._what = what
        self._copied: torch.cuda.Event | None = None
        with batch_errors(what):
            self._host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._host.copy_(tensor, non_blocking=True)
            if tensor.is_cuda:
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> torch.Tensor:
        """Wait for the copy and return it. Raises what the constructor raises."""
        with batch_errors(self._what):
            if self._copied is not None:
                self._copied.synchronize()
        return self._host


@dataclass(frozen=True, slots=True)
class PickedRows:
    """Some rows of a batch.

    Attributes:
        index: Which rows, int64, uploaded; None if they are all.
    """

    index: Field | None

    @staticmethod
    def of(wanted: Sequence[int], num_rows: int, upload: Upload) -> "PickedRows":
        """Pick rows of a batch of a given size; they are in rising order, and none comes twice."""
        return PickedRows(None if len(wanted) == num_rows else upload.add(wanted, torch.int64))

    def select(self, batch: torch.Tensor, words_W: torch.Tensor) -> torch.Tensor:
        """These rows of a tensor; the tensor itself if they are all."""
        return batch if self.index is None else batch.index_select(0, self.index.of(words_W))

    def replace(self, batch: torch.Tensor, rows: torch.Tensor, words_W: torch.Tensor) -> torch.Tensor:
        """A tensor with these rows replaced."""
        return rows if self.index is None else batch.index_copy(0, self.index.of(words_W), rows)


_NUMPY_TYPES = {torch.int64: np.int64, torch.float32: np.float32, torch.float64: np.float64}
