"""What every format of weights offers: a matrix that can be filled, sized and multiplied.

Shape suffixes: R rows of a matrix, C its columns, T tokens.
"""

from typing import Protocol

import torch


class Slot(Protocol):
    """Where one tensor of a checkpoint goes. A format that packs or quantises has slots of its own.

    Attributes:
        shape: The tensor's rows and columns; a vector is one row.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def put(self, values_RC: torch.Tensor, row: int, column: int) -> None:
        """Store a part of the tensor.

        Args:
            values_RC: Of any floating type, on the weights' device. Whole rows, as many as come at once;
                a part of one row only where a row is larger than what is uploaded at once. Overwritten
                after this call by work that is queued on the current stream.
            row: Of the tensor, where the part begins.
            column: The same.
        """
        ...


class Matrix(Protocol):
    """One matrix of weights, in some format.

    Attributes:
        shape: Rows, which come out of the product, and columns, which go in.
        tensors: All memory that it takes, the values first.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]: ...

    def slot(self, rows: slice = ..., columns: slice = ...) -> Slot:
        """Where a tensor goes that is these rows and columns of the matrix; all of it by default."""
        ...

    def multiply(self, x_TC: torch.Tensor, out_TR: torch.Tensor) -> None:
        """Enqueue ``out_TR = x_TC @ matrix.T``, by the library that is fastest for many rows.

        Args:
            x_TC: In the type of the activations.
            out_TR: In that type, or float32.
        """
        ...
