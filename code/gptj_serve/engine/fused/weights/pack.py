"""The weights of the `fused` engine: layers, each a list of matrix products, and where each tensor goes.

The kernels rely on this layout. GPT-J's residual is parallel, so a layer is two products: ``[q;k;v;fc_in]``
on the normed input, then ``[fc_out|out_proj]`` on what comes out of both paths.

Shape suffixes: V vocabulary, D width of the residual stream, N rows of a product that have a bias.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import torch

from gptj_serve.engine.fused.weights.formats.plain import PlainMatrix, PlainSlot
from gptj_serve.engine.fused.weights.matrix import Matrix, Slot
from gptj_serve.models.architecture import TIED_HEAD, Architecture, Part, Role
from gptj_serve.models.families import tensors_of


class Epilogue(IntEnum):
    """What becomes of a product's result. The numbers are those of ``csrc/fused.h``, which says more."""

    PROJECT = 0
    """Rows of q, k and v, to attend with; then rows of the MLP, through its activation."""
    ADD = 1
    """Added to the residual stream, which is normalised for what reads it next."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A LayerNorm: ``weight_D`` and ``bias_D``."""

    weight_D: torch.Tensor
    bias_D: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One matrix product of a layer.

    Attributes:
        matrix: The weights.
        bias_N: Of the rows from ``first_biased_row`` on.
        first_biased_row: The rows before have no bias.
        epilogue: What becomes of the result.
        first_inner_row: Of `Epilogue.PROJECT`: the rows before are q, k and v, those from here on the MLP's.
        norm: Of `Epilogue.ADD`: what reads the residual stream next.
    """

    matrix: Matrix
    bias_N: torch.Tensor
    first_biased_row: int
    epilogue: Epilogue
    first_inner_row: int = 0
    norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block: its products in the order in which they are computed."""

    products: tuple[Product, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """All weights of a model, on one device.

    Attributes:
        embedding_VD: ``wte``.
        first_norm: What the first layer reads; the other LayerNorms are in the products before them.
        layers: The transformer blocks.
        head: ``lm_head``; its values are the very tensor `embedding_VD` when the two are tied.
        head_bias_V: Of ``lm_head``.
    """

    embedding_VD: torch.Tensor
    first_norm: Norm
    layers: tuple[Layer, ...]
    head: Matrix
    head_bias_V: torch.Tensor

    @property
    def is_tied(self) -> bool:
        """The head is the embedding."""
        return any(tensor is self.embedding_VD for tensor in self.head.tensors)

    @property
    def num_bytes(self) -> int:
        """Memory that the weights take; what is tied counts once."""
        return sum({id(tensor): tensor.nbytes for tensor in self.tensors()}.values())

    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors; one that is tied comes twice."""
        yield self.embedding_VD
        for layer in self.layers:
            for product in layer.products:
                yield from (*product.matrix.tensors, product.bias_N)
        for norm in self.norms():
            yield from (norm.weight_D, norm.bias_D)
        yield from (*self.head.tensors, self.head_bias_V)

    def norms(self) -> Iterator[Norm]:
        """All LayerNorms, in the order in which they are computed."""
        yield self.first_norm
        for layer in self.layers:
            yield from (product.norm for product in layer.products if product.norm is not None)


def empty_weights(
    architecture: Architecture, device: torch.device, dtype: torch.dtype, *, is_tied: bool
) -> PackedWeights:
    """Allocate the weights of a model, unfilled.

    Args:
        architecture: The model's dimensions.
        device: Where.
        dtype: Floating type.
        is_tied: The head shares the embedding's memory.
    """

    def matrix(rows: int, columns: int) -> PlainMatrix:
        return PlainMatrix.empty(rows, columns, device, dtype)

    def vector(size: int) -> torch.Tensor:
        return torch.empty(size, device=device, dtype=dtype)

    d, inner, attention = architecture.width, architecture.inner, architecture.attention_width

    def layer() -> Layer:
        project = Product(
            matrix=matrix(3 * attention + inner, d),
            bias_N=vector(inner),
            first_biased_row=3 * attention,
            epilogue=Epilogue.PROJECT,
            first_inner_row=3 * attention,
        )
        add = Product(
            matrix=matrix(d, inner + attention),
            bias_N=vector(d),
            first_biased_row=0,
            epilogue=Epilogue.ADD,
            norm=Norm(vector(d), vector(d)),
        )
        return Layer((project, add))

    embedding = matrix(architecture.vocab_size, d)
    return PackedWeights(
        embedding_VD=embedding.values_RC,
        first_norm=Norm(vector(d), vector(d)),
        layers=tuple(layer() for _ in range(architecture.num_layers)),
        head=embedding if is_tied else matrix(architecture.vocab_size, d),
        head_bias_V=vector(architecture.vocab_size),
    )


def slots(weights: PackedWeights, architecture: Architecture) -> dict[str, Slot]:
    """The slot of every tensor of a checkpoint that has one, by its full name; a tied head has none.

    Args:
        weights: To be filled.
        architecture: Whose they are.
    """
    parts = tensors_of(architecture)
    if not weights.is_tied:
        # a head that is stored though it is tied has a place until it turns out to be the embedding
        parts.setdefault(TIED_HEAD, Part(weights.head.shape, Role.HEAD))
    *norms, last_norm = weights.norms()
    of_model: dict[Role, Slot] = {
        Role.EMBEDDING: PlainSlot(weights.embedding_VD),
        Role.LAST_NORM: _vector_slot(last_norm.weight_D),
        Role.LAST_NORM_BIAS: _vector_slot(last_norm.bias_D),
        Role.HEAD: weights.head.slot(),
        Role.HEAD_BIAS: _vector_slot(weights.head_bias_V),
    }
    of_layers = [
        _layer_slots(layer, norm, architecture) for layer, norm in zip(weights.layers, norms, strict=True)
    ]
    return {
        name: of_model[part.role] if part.layer is None else of_layers[part.layer][part.role]
        for name, part in parts.items()
    }


def _layer_slots(layer: Layer, norm: Norm, architecture: Architecture) -> dict[Role, Slot]:
    """Where a layer's tensors go.

    Args:
        layer: The layer.
        norm: What it reads.
        architecture: The model's.
    """
    (project, add), width = layer.products, architecture.attention_width
    return {
        Role.QUERY: project.matrix.slot(slice(width)),
        Role.KEY: project.matrix.slot(slice(width, 2 * width)),
        Role.VALUE: project.matrix.slot(slice(2 * width, 3 * width)),
        Role.INNER_IN: project.matrix.slot(slice(project.first_inner_row, None)),
        Role.INNER_IN_BIAS: _vector_slot(project.bias_N),
        Role.INNER_OUT: add.matrix.slot(columns=slice(architecture.inner)),
        Role.ATTENTION_OUT: add.matrix.slot(columns=slice(architecture.inner, None)),
        Role.INNER_OUT_BIAS: _vector_slot(add.bias_N),
        Role.NORM: _vector_slot(norm.weight_D),
        Role.NORM_BIAS: _vector_slot(norm.bias_D),
    }


def _vector_slot(vector: torch.Tensor) -> Slot:
    return PlainSlot(vector.unsqueeze(0))
