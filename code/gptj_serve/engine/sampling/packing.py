"""Many small arrays in one buffer, so that one transfer moves them all.

A transfer costs a few microseconds of the host whatever its size, and one that is made from a Python list
would wait for the device. Shape suffix: W words of the buffer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

WORD_BYTES = 8
"""Every array starts at a multiple of this, so that it can be viewed as any type."""


@dataclass(frozen=True, slots=True)
class Field:
    """Where an array lies in a buffer of words.

    Attributes:
        start: Its first word.
        num: Its elements.
        dtype: Their type, of at most 8 bytes.
    """

    start: int
    num: int
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        """The word after its last one."""
        return self.start + -(-self.num * self.dtype.itemsize // WORD_BYTES)

    def of(self, words_W: torch.Tensor) -> torch.Tensor:
        """The array, a view of the buffer (int64 [W], on any device)."""
        return words_W[self.start : self.stop].view(self.dtype)[: self.num]


class Layout:
    """Places arrays one after the other."""

    def __init__(self) -> None:
        self.num_words = 0

    def add(self, num: int, dtype: torch.dtype) -> Field:
        """Room for one more array."""
        field = Field(self.num_words, num, dtype)
        self.num_words = field.stop
        return field

    def host_buffer(self, device: torch.device) -> torch.Tensor:
        """Words on the host, int64 [W], page-locked if the device can copy from and to them on its own.

        Such memory comes from torch's cache, which gives it to nobody else before the copies that were
        started with it have ended.
        """
        return torch.empty(self.num_words, dtype=torch.int64, pin_memory=device.type == "cuda")


class Upload:
    """Collects arrays of host values, then moves all of them in one transfer."""

    def __init__(self) -> None:
        self._layout = Layout()
        self._arrays: list[tuple[Field, Sequence[float] | np.ndarray]] = []

    def add(self, values: Sequence[float] | np.ndarray, dtype: torch.dtype) -> Field:
        """One more array; float32 ones are rounded once from the float64 values."""
        field = self._layout.add(len(values), dtype)
        self._arrays.append((field, values))
        return field

    def to(self, device: torch.device) -> torch.Tensor:
        """Start the transfer; the host does not wait. Returns the words that fields are views of."""
        host_W = self._layout.host_buffer(device)
        words = host_W.numpy()
        for field, values in self._arrays:
            words[field.start : field.stop].view(_NUMPY_TYPES[field.dtype])[: field.num] = values
        return host_W.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class PickedRows:
    """Some rows of a batch.

    Attributes:
        index: Which, int64, uploaded; None if they are all.
    """

    index: Field | None

    @staticmethod
    def of(wanted: Sequence[int], num_rows: int, upload: Upload) -> "PickedRows":
        """Rows in rising order, none twice, of a batch of so many."""
        return PickedRows(None if len(wanted) == num_rows else upload.add(wanted, torch.int64))

    def select(self, batch: torch.Tensor, words_W: torch.Tensor) -> torch.Tensor:
        """These rows of a tensor; the tensor itself if they are all."""
        return batch if self.index is None else batch.index_select(0, self.index.of(words_W))

    def replace(self, batch: torch.Tensor, rows: torch.Tensor, words_W: torch.Tensor) -> torch.Tensor:
        """A tensor with these rows replaced."""
        return rows if self.index is None else batch.index_copy(0, self.index.of(words_W), rows)


_NUMPY_TYPES = {torch.int64: np.int64, torch.float32: np.float32, torch.float64: np.float64}
