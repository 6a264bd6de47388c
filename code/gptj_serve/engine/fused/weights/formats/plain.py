"""Matrices as they are, in the floating type of the other weights."""

from dataclasses import dataclass

import torch

from gptj_serve.engine.fused.weights.matrix import Slot


@dataclass(frozen=True, slots=True)
class PlainSlot:
    """Stores a tensor as it is, converted to the target's type."""

    target_RC: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """See `Slot`."""
        rows, columns = self.target_RC.shape
        return rows, columns

    def put(self, values_RC: torch.Tensor, row: int, column: int) -> None:
        """See `Slot.put`."""
        rows, columns = values_RC.shape
        self.target_RC[row : row + rows, column : column + columns].copy_(values_RC)


@dataclass(frozen=True, slots=True)
class PlainMatrix:
    """Meets `gptj_serve.engine.fused.weights.matrix.Matrix`.

    Attributes:
        values_RC: The weights: rows come out of the product, columns go in.
    """

    values_RC: torch.Tensor

    @staticmethod
    def empty(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> "PlainMatrix":
        """Allocate a matrix, unfilled."""
        return PlainMatrix(torch.empty(rows, columns, device=device, dtype=dtype))

    @property
    def shape(self) -> tuple[int, int]:
        """See `Matrix`."""
        rows, columns = self.values_RC.shape
        return rows, columns

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """See `Matrix`."""
        return (self.values_RC,)

    def slot(self, rows: slice = slice(None), columns: slice = slice(None)) -> Slot:
        """See `Matrix.slot`."""
        return PlainSlot(self.values_RC[rows, columns])

    def multiply(self, x_TC: torch.Tensor, out_TR: torch.Tensor) -> None:
        """See `Matrix.multiply`."""
        if x_TC.dtype == out_TR.dtype:
            torch.mm(x_TC, self.values_RC.T, out=out_TR)
        else:
            torch.mm(x_TC, self.values_RC.T, out_dtype=out_TR.dtype, out=out_TR)
