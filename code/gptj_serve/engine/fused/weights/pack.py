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
    return {name: _slot(weights, part, architecture) for name, part in parts.items()}


def _slot(weights: PackedWeights, part: Part, architecture: Architecture) -> Slot:
    if part.layer is not None:
        return _layer_slot(weights, part.role, part.layer, architecture)
    *_, last_norm = weights.norms()
    match part.role:
        case Role.EMBEDDING:
            return PlainSlot(weights.embedding_VD)
        case Role.LAST_NORM:
            return _vector_slot(last_norm.weight_D)
        case Role.LAST_NORM_BIAS:
            return _vector_slot(last_norm.bias_D)
        case Role.HEAD:
            return weights.head.slot()
        case Role.HEAD_BIAS:
            return _vector_slot(weights.head_bias_V)
    raise ValueError(f"a tensor of the role {part.role.name} belongs to a layer")


def _layer_slot(weights: PackedWeights, role: Role, layer: int, architecture: Architecture) -> Slot:
    project, add = weights.layers[layer].products
    *norms, _ = weights.norms()
    match role:
        case Role.QUERY | Role.KEY | Role.VALUE:
            index = (Role.QUERY, Role.KEY, Role.VALUE).index(role)
            width = architecture.attention_width
            return project.matrix.slot(slice(index * width, (index + 1) * width))
        case Role.INNER_IN:
            return project.matrix.slot(slice(project.first_inner_row, None))
        case Role.INNER_IN_BIAS:
            return _vector_slot(project.bias_N)
        case Role.INNER_OUT:
            return add.matrix.slot(columns=slice(None, architecture.inner))
        case Role.ATTENTION_OUT:
            return add.matrix.slot(columns=slice(architecture.inner, None))
        case Role.INNER_OUT_BIAS:
            return _vector_slot(add.bias_N)
        case Role.NORM:
            return _vector_slot(norms[layer].weight_D)
        case Role.NORM_BIAS:
            return _vector_slot(norms[layer].bias_D)
    raise ValueError(f"a tensor of the role {role.name} belongs to no layer")


def _vector_slot(vector: torch.Tensor) -> Slot:
    return PlainSlot(vector.unsqueeze(0))
