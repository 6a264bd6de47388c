"""Which models the kernels are compiled for. No torch here."""

from gptj_serve.models.config import CONFIG
from gptj_serve.models.model_dir import Checkpoint

HEAD_DIMS = (64, 128, 256)
"""Numbers of a head that attention is compiled for."""

MAX_WIDTH = 4096
"""Widest residual stream that the LayerNorm is compiled for."""

ACTIVATION = "gelu_new"


def obstacle(checkpoint: Checkpoint) -> str | None:
    """Why the fused engine cannot run a checkpoint's model; None when it can."""
    of, path = checkpoint.architecture, checkpoint.directory / CONFIG
    if of.activation != ACTIVATION:
        return f"{path}: activation_function is {of.activation!r}; its kernels have {ACTIVATION} alone"
    if of.head_dim not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        return f"{path}: the heads have {of.head_dim} dimensions; its kernels have {known}"
    if of.width > MAX_WIDTH:
        return f"{path}: the width is {of.width}; its kernels have {MAX_WIDTH} at most"
    if of.inner % 64:
        return f"{path}: the MLP's width is {of.inner}; its kernels need a multiple of 64"
    return None
