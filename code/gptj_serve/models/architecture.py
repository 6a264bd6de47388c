"""What a model is, whatever its family calls it: dimensions, and the tensors that follow from them.

One description serves the checks of a checkpoint, the engines, and what is computed of a model before it is
loaded. A family is one file in `gptj_serve.models.families`.
"""

from dataclasses import dataclass
from enum import Enum, auto

TIED_HEAD = "lm_head.weight"
"""Left out of checkpoints that tie it to the embedding, as a rule."""
EMBEDDING = "transformer.wte.weight"
"""Left out instead by safetensors' ``save_model``."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """Positions as angles by which pairs of numbers in queries and keys are turned.

    Attributes:
        dim: Numbers of each head that are turned, even; the others stay.
        base: Of the frequencies.
    """

    dim: int
    base: float = 10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model's dimensions.

    Attributes:
        family: Name of its file in `gptj_serve.models.families`.
        num_layers: Transformer blocks.
        width: Numbers of the residual stream.
        num_heads: Attention heads.
        head_dim: Numbers of a head.
        inner: Width of the MLP.
        vocab_size: Token ids, rows of the embedding.
        max_positions: Longest context, in tokens.
        positions: How a token knows its position.
        activation: Of the MLP, by Transformers' name.
        epsilon: Added to the variance in each LayerNorm.
        tied_head: The head shares the embedding's weight.
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
        """Numbers of all heads together."""
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
    """One tensor of a checkpoint.

    Attributes:
        shape: Its dimensions, as files have it.
        role: What it does.
        layer: Which block it belongs to; None if to none.
    """

    shape: tuple[int, ...]
    role: Role
    layer: int | None = None
