"""Describes a model, whatever its family calls things: its dimensions, and the tensors that follow from them.

The checks of a checkpoint, the engines, and what is computed before a model is loaded all use one
description. A family is a file in `gptj_serve.models.families`.
"""

from dataclasses import dataclass
from enum import Enum, auto

TIED_HEAD = "lm_head.weight"
"""The head's weight, which checkpoints that tie it to the embedding usually leave out."""
EMBEDDING = "transformer.wte.weight"
"""The embedding's weight, which safetensors' ``save_model`` leaves out instead."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """Positions are angles by which pairs of numbers in queries and keys are rotated.

    Attributes:
        dim: How many numbers of each head are rotated, even; the others stay.
        base: The base of the frequencies.
    """

    dim: int
    base: float = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model's dimensions.

    Attributes:
        family: Name of the family's file in `gptj_serve.models.families`.
        num_layers: How many transformer blocks there are.
        width: Width of the residual stream.
        num_heads: How many attention heads a block has.
        head_dim: Width of a head.
        inner: Width of the MLP.
        vocab_size: How many token ids there are, and rows of the embedding.
        max_positions: Longest context, in tokens.
        positions: How a token knows its position.
        activation: Transformers' name of the MLP's activation.
        epsilon: Added to the variance in each LayerNorm.
        tied_head: Whether the head shares the embedding's weight.
    """

    family: str
    num_layers: int
    width: int
    num_heads: int
    head_dim: int
    inner: int
    vocab_size: int
    max_positions: int
    positions: Rotary
    activation: str
    epsilon: float
    tied_head: bool

    @property
    def attention_width(self) -> int:
        """The width of all heads together."""
        return self.num_heads * self.head_dim


class Role(Enum):
    """What a tensor does in the model."""

    EMBEDDING = auto()
    QUERY = auto()
    KEY = auto()
    VALUE = auto()
    ATTENTION_OUT = auto()
    INNER_IN = auto()
    INNER_IN_BIAS = auto()
    INNER_OUT = auto()
    INNER_OUT_BIAS = auto()
    NORM = auto()
    NORM_BIAS = auto()
    LAST_NORM = auto()
    LAST_NORM_BIAS = auto()
    HEAD = auto()
    HEAD_BIAS = auto()


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a checkpoint.

    Attributes:
        shape: The tensor's shape in files.
        role: What the tensor does.
        layer: The block that it belongs to; None if it belongs to none.
    """

    shape: tuple[int, ...]
    role: Role
    layer: int | None = None
