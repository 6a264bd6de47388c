"""The dimensions of a model that the kernels are compiled for. No torch here."""

from dataclasses import dataclass

from gptj_serve.files import read_json
from gptj_serve.models.config import CONFIG, ModelConfig
from gptj_serve.models.model_dir import Checkpoint

HEAD_DIMS = (64, 128, 256)
"""Numbers of a head that attention is compiled for."""

MAX_WIDTH = 4096
"""Widest residual stream that the LayerNorm is compiled for."""

ACTIVATION = "gelu_new"


@dataclass(frozen=True, slots=True)
class Geometry:
    """The model's dimensions.

    Attributes:
        num_layers, num_heads, head_dim: As the names say.
        rotary_dim: Numbers of each head that are rotated, even.
        inner: Width of the MLP.
        vocab_size: Rows of the embedding.
        epsilon: Of the LayerNorms.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    rotary_dim: int
    inner: int
    vocab_size: int
    epsilon: float

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.num_heads * self.head_dim

    @property
    def attention_width(self) -> int:
        """Numbers of all heads together; GPT-J's is the width."""
        return self.num_heads * self.head_dim


def geometry_of(config: ModelConfig) -> Geometry:
    """The dimensions that a configuration says."""
    return Geometry(
        num_layers=config.n_layer,
        num_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        rotary_dim=config.rotary_dim,
        inner=config.n_inner,
        vocab_size=config.vocab_size,
        epsilon=config.layer_norm_epsilon,
    )


def obstacle(checkpoint: Checkpoint) -> str | None:
    """Why the fused engine cannot run a checkpoint's model; None when it can."""
    path = checkpoint.directory / CONFIG
    activation = read_json(path).get("activation_function", ACTIVATION)
    head_dim = checkpoint.n_embd // checkpoint.n_head
    if activation != ACTIVATION:
        return f"{path}: activation_function is {activation!r}; its kernels have {ACTIVATION} alone"
    if head_dim not in HEAD_DIMS:
        return f"{path}: n_embd / n_head is {head_dim}; its kernels have {', '.join(map(str, HEAD_DIMS))}"
    if checkpoint.n_embd > MAX_WIDTH:
        return f"{path}: n_embd is {checkpoint.n_embd}; its kernels have {MAX_WIDTH} at most"
    if checkpoint.n_inner % 64:
        return f"{path}: n_inner is {checkpoint.n_inner}; its kernels need a multiple of 64"
    return None
