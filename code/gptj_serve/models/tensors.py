"""What is known about a checkpoint's tensors without their values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says about a tensor.

    Attributes:
        path: The file.
        shape: The tensor's dimensions.
        is_float: Whether its numbers have a floating type.
    """

    path: Path
    shape: tuple[int, ...]
    is_float: bool


@dataclass(frozen=True, slots=True)
class StoredTensor(TensorInfo):
    """Where the numbers of a safetensors file's tensor are: row-major, little-endian, without gaps.

    Attributes:
        dtype: The format's name of their type, for example "F16".
        offset: Where the first byte is in the file.
        num_bytes: How many bytes there are.
    """

    dtype: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class PickledTensor(TensorInfo):
    """A pickle's tensor.

    Attributes:
        tensor: The tensor, whose values are mapped from the disk; not in files from before PyTorch 1.6.
    """

    tensor: "torch.Tensor"


T = TypeVar("T", bound=TensorInfo)
T_co = TypeVar("T_co", bound=TensorInfo, covariant=True)


@dataclass(frozen=True, slots=True)
class Contents(Generic[T_co]):
    """What files hold.

    Attributes:
        tensors: The tensors by name.
        notes: What was ignored because it changes nothing, a sentence each.
    """

    tensors: Mapping[str, T_co]
    notes: tuple[str, ...] = ()
