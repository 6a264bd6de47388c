"""What is known of a checkpoint's tensors without their values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import torch


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
class PickledTensor(TensorInfo):
    """A pickle's tensor.

    Attributes:
        tensor: Its values stay on the disk, mapped; in files from before PyTorch 1.6 they cannot.
    """

    tensor: "torch.Tensor"


T = TypeVar("T", bound=TensorInfo)
T_co = TypeVar("T_co", bound=TensorInfo, covariant=True)


@dataclass(frozen=True, slots=True)
class Contents(Generic[T_co]):
    """What files hold.

    Attributes:
        tensors: By name.
        notes: What was passed over because it changes nothing, a sentence each.
    """

    tensors: Mapping[str, T_co]
    notes: tuple[str, ...] = ()
