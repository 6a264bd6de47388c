"""The weights of the `fused` engine, packed into two matrices a block, and where each tensor goes in them.

The kernels rely on this layout. GPT-J's residual is parallel, so a block is two matrix products:
``[q;k;v;fc_in]`` on the normed input, then ``[fc_out|out_proj]`` on what comes out of both paths.

Shape suffixes: V vocabulary, L layers, D width of the residual stream, N rows of the input matrix (q, k, v,
fc_in), F inner width of the MLP, K columns of the output matrix (fc_out, out_proj), R and C rows and columns
of any matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

import torch

from gptj_serve.models.config import TIED_HEAD, ModelConfig

PLAIN = "plain"
"""Matrices are stored as they are, in the floating type of the other weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """All weights of a GPT-J: contiguous, on one device, of one floating type.

    Attributes:
        embedding_VD: ``wte``.
        in_weight_LND: Rows: q (d), k (d), v (d), fc_in (n_inner).
        in_bias_LF: Of fc_in; q, k and v have none.
        out_weight_LDK: Columns: fc_out (n_inner), then out_proj (d).
        out_bias_LD: Of fc_out; out_proj has none.
        norm_weight_LD: ln_1 of each block, then ln_f: layers + 1 rows.
        norm_bias_LD: The same.
        head_weight_VD: ``lm_head``; the very tensor `embedding_VD` when the two are tied.
        head_bias_V: Of ``lm_head``.
        format: How in_weight, out_weight and head_weight are stored; `PLAIN` is the only one so far.
    """

    embedding_VD: torch.Tensor  # noqa: N815
    in_weight_LND: torch.Tensor  # noqa: N815
    in_bias_LF: torch.Tensor  # noqa: N815
    out_weight_LDK: torch.Tensor  # noqa: N815
    out_bias_LD: torch.Tensor  # noqa: N815
    norm_weight_LD: torch.Tensor  # noqa: N815
    norm_bias_LD: torch.Tensor  # noqa: N815
    head_weight_VD: torch.Tensor  # noqa: N815
    head_bias_V: torch.Tensor  # noqa: N815
    format: str = PLAIN

    @property
    def is_tied(self) -> bool:
        """The head is the embedding."""
        return self.head_weight_VD is self.embedding_VD

    @property
    def num_bytes(self) -> int:
        """Memory that the weights take; what is tied counts once."""
        values = (getattr(self, field.name) for field in fields(self))
        tensors = {id(value): value.nbytes for value in values if isinstance(value, torch.Tensor)}
        return sum(tensors.values())


def empty_weights(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, *, is_tied: bool
) -> PackedWeights:
    """Allocate the weights of a model, unfilled.

    Args:
        config: The model's dimensions.
        device: Where.
        dtype: Floating type.
        is_tied: The head shares the embedding's memory.
    """

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device=device, dtype=dtype)

    layers, d, inner, vocab = config.n_layer, config.n_embd, config.n_inner, config.vocab_size
    embedding_VD = empty(vocab, d)
    return PackedWeights(
        embedding_VD=embedding_VD,
        in_weight_LND=empty(layers, 3 * d + inner, d),
        in_bias_LF=empty(layers, inner),
        out_weight_LDK=empty(layers, d, inner + d),
        out_bias_LD=empty(layers, d),
        norm_weight_LD=empty(layers + 1, d),
        norm_bias_LD=empty(layers + 1, d),
        head_weight_VD=embedding_VD if is_tied else empty(vocab, d),
        head_bias_V=empty(vocab),
    )


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


@dataclass(frozen=True, slots=True)
class PlainSlot:
    """Stores a tensor as it is, converted to the target's type."""

    target_RC: torch.Tensor  # noqa: N815

    @property
    def shape(self) -> tuple[int, int]:
        """See `Slot`."""
        rows, columns = self.target_RC.shape
        return rows, columns

    def put(self, values_RC: torch.Tensor, row: int, column: int) -> None:
        """See `Slot.put`."""
        rows, columns = values_RC.shape
        self.target_RC[row : row + rows, column : column + columns].copy_(values_RC)


def slots(weights: PackedWeights) -> dict[str, Slot]:
    """The slot of every tensor that a checkpoint has, by its full name; a tied head has none.

    Raises:
        ValueError: Weights of a format that nobody can write.
    """
    if weights.format != PLAIN:
        raise ValueError(f"weights of the format {weights.format!r} cannot be filled; known: {PLAIN}")
    found = {name: PlainSlot(target_RC) for name, target_RC in _block_targets(weights)}
    norms = {"weight": weights.norm_weight_LD, "bias": weights.norm_bias_LD}
    found |= {f"transformer.ln_f.{part}": PlainSlot(norm_LD[-1:]) for part, norm_LD in norms.items()}
    found["transformer.wte.weight"] = PlainSlot(weights.embedding_VD)
    found["lm_head.bias"] = PlainSlot(weights.head_bias_V.unsqueeze(0))
    if not weights.is_tied:
        found[TIED_HEAD] = PlainSlot(weights.head_weight_VD)
    return dict(found)


def _block_targets(weights: PackedWeights) -> Iterator[tuple[str, torch.Tensor]]:
    num_layers, d, _ = weights.out_weight_LDK.shape
    inner = weights.in_bias_LF.shape[1]
    for layer in range(num_layers):
        prefix = f"transformer.h.{layer}"
        in_weight_ND, out_weight_DK = weights.in_weight_LND[layer], weights.out_weight_LDK[layer]
        for index, name in enumerate("qkv"):
            yield f"{prefix}.attn.{name}_proj.weight", in_weight_ND[index * d : (index + 1) * d]
        yield f"{prefix}.mlp.fc_in.weight", in_weight_ND[3 * d :]
        yield f"{prefix}.mlp.fc_out.weight", out_weight_DK[:, :inner]
        yield f"{prefix}.attn.out_proj.weight", out_weight_DK[:, inner:]
        vectors = {"mlp.fc_in.bias": weights.in_bias_LF, "mlp.fc_out.bias": weights.out_bias_LD}
        vectors |= {"ln_1.weight": weights.norm_weight_LD, "ln_1.bias": weights.norm_bias_LD}
        for name, vector_LX in vectors.items():
            yield f"{prefix}.{name}", vector_LX[layer : layer + 1]
