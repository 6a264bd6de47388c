"""What DeepSpeed's kernels can hold and which models they get right. There is only arithmetic here.

Sources are those of DeepSpeed 0.19.8: ``csrc/transformer/inference/includes/inference_context.h``
for the workspace, ``csrc/transformer/inference/csrc`` for the limits of the kernels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GPTJConfig

from gptj_serve.errors import StartupError

DEFAULT_MAX_BATCH_SIZE = 8
"""How many rows there are at most unless the operator chooses; with more rows, all of them are slower."""

RESERVE_BYTES = 512 << 20
"""GPU memory that is left for cuBLAS's workspaces, the logits and what the allocator rounds up. It covers the
500 MiB that the extension leaves free when it takes its workspace."""

INT32_LIMIT = 1 << 31

MAX_HIDDEN_SIZE = 8192
"""The rotary kernel uses one thread for 8 values of a token, and a block has 1024 threads."""

VALUES_PER_ACCESS = 8
"""How many FP16 values a kernel reads at once; sizes have to be multiples of it."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a GPT-J that decide what its kernels need.

    Attributes:
        num_layers: Number of blocks.
        hidden_size: Width of the residual stream.
        num_heads: Attention heads.
        max_positions: Longest context the model knows.
        vocab_size: Width of the logits.
        element_bytes: Size of one weight or activation.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    max_positions: int
    vocab_size: int
    element_bytes: int

    @staticmethod
    def of(config: GPTJConfig, dtype: torch.dtype) -> "ModelShape":
        """Read the shape from a Transformers configuration."""
        return ModelShape(
            num_layers=config.n_layer,
            hidden_size=config.n_embd,
            num_heads=config.n_head,
            max_positions=config.n_positions,
            vocab_size=config.vocab_size,
            element_bytes=dtype.itemsize,
        )

    @property
    def cached_head_size(self) -> int:
        """How many values the workspace holds for a head; heads up to 128 are rounded up."""
        head_size = self.hidden_size // self.num_heads
        return head_size if head_size > 128 else next(size for size in (32, 64, 128) if head_size <= size)


def check_config(config: GPTJConfig) -> None:
    """Refuse a model that the injected kernels would get wrong or could not run.

    Raises:
        StartupError: The message says which number of ``config.json`` it is.
    """
    head_size = config.n_embd // config.n_head
    rotary_dim = config.rotary_dim or 0
    wrong = {
        # the injection policy takes four times the width without reading the real size
        f"n_inner={config.n_inner}": config.n_inner not in (None, 4 * config.n_embd),
        f"activation_function={config.activation_function}": config.activation_function != "gelu_new",
        # without a rotary_dim the injected block normalises a second time, after the attention
        f"rotary_dim={config.rotary_dim}": not 0 < rotary_dim <= head_size or rotary_dim % VALUES_PER_ACCESS,
        f"n_embd / n_head={head_size}": head_size % VALUES_PER_ACCESS,
        f"n_embd={config.n_embd}": config.n_embd > MAX_HIDDEN_SIZE,
    }
    refused = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
    if refused:
        raise StartupError(f"DeepSpeed's GPT-J kernels cannot run this model ({refused}); set GPTJ_ENGINE=hf")


def check_dtype(dtypes: set[torch.dtype], device_type: str) -> None:
    """Refuse weights of a type that the compiled kernels would get wrong.

    Raises:
        StartupError: The message says why.
    """
    reasons = {
        torch.float32: "their rotary embedding overwrites its own input in fp32",
        torch.bfloat16: "they are built without bf16 for V100 and T4, and fall back to wrong Python code",
        torch.int8: "their int8 path turns weights into zeros",
    }
    wrong = dtypes - {torch.float16} if device_type == "cuda" else set()
    if wrong or len(dtypes) != 1:
        reason = next((reasons[dtype] for dtype in wrong & reasons.keys()), "nothing else was ever checked")
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise StartupError(f"DeepSpeed's GPT-J kernels need float16 weights, these are {names}: {reason}")


def choose_context(shape: ModelShape, asked: int | None) -> int:
    """How many columns a batch may fill: what was asked for, at most what the model knows."""
    return min(asked or shape.max_positions, shape.max_positions)


def workspace_bytes(shape: ModelShape, batch_size: int, max_context: int) -> int:
    """How many bytes the extension allocates, once, for a batch of this size.

    Its three parts are activations, attention scores and the KV cache. The scores are quadratic in
    the context.
    """
    width = shape.num_heads * shape.cached_head_size
    activations = 10 * width
    scores = shape.num_heads * max_context
    cache = 2 * shape.num_layers * width
    return (activations + scores + cache) * batch_size * max_context * shape.element_bytes


def needed_bytes(shape: ModelShape, batch_size: int, max_context: int) -> int:
    """The free GPU memory that is needed before the workspace is allocated, so that any prefill fits, too."""
    # hidden states, the MLP's four times wider middle and its output are outside of the workspace
    activations = 6 * shape.hidden_size * batch_size * max_context * shape.element_bytes
    return workspace_bytes(shape, batch_size, max_context) + activations + RESERVE_BYTES


def indexable_batch_size(shape: ModelShape, max_context: int) -> int:
    """How many rows fit before a kernel's 32-bit index wraps (scores or MLP of a full prefill)."""
    per_row = max_context * max(shape.num_heads * max_context, 4 * shape.hidden_size)
    return (INT32_LIMIT - 1) // per_row


def choose_batch_size(shape: ModelShape, free_bytes: int, asked: int | None, max_context: int) -> int:
    """How many rows a batch has at most: what was asked for, or the largest default that fits.

    Args:
        shape: The model.
        free_bytes: GPU memory that is free now, with the weights loaded.
        asked: The operator's choice; None leaves it to us.
        max_context: How many columns a batch may fill.

    Raises:
        StartupError: It does not fit; the message names what is needed, what is free, and the settings to
            change.
    """
    indexable = indexable_batch_size(shape, max_context)
    fitting = _largest(lambda rows: needed_bytes(shape, rows, max_context) <= free_bytes, indexable)
    if asked is not None and asked > indexable:
        raise StartupError(
            f"GPTJ_MAX_BATCH_SIZE={asked}: DeepSpeed's kernels index at most {indexable} rows of "
            f"{max_context} tokens; lower it, or GPTJ_MAX_CONTEXT"
        )
    wanted = asked or 1
    if fitting < wanted:
        raise StartupError(
            f"DeepSpeed's workspace for {wanted} x {max_context} tokens needs "
            f"{_gib(needed_bytes(shape, wanted, max_context))} of GPU memory, {_gib(free_bytes)} are free: "
            + _cure(shape, free_bytes, fitting, max_context)
        )
    return asked or min(fitting, DEFAULT_MAX_BATCH_SIZE)


def _cure(shape: ModelShape, free_bytes: int, fitting: int, max_context: int) -> str:
    if fitting:
        return f"set GPTJ_MAX_BATCH_SIZE to {fitting} or less, or lower GPTJ_MAX_CONTEXT"
    context = _largest(lambda tokens: needed_bytes(shape, 1, tokens) <= free_bytes, max_context)
    if context < 2:
        return "the GPU is too small for this model; set GPTJ_ENGINE=hf"
    return f"set GPTJ_MAX_CONTEXT to {context} or less"


def _largest(fits: Callable[[int], bool], high: int) -> int:
    """The largest of 0..high that fits, if everything smaller than a fitting number fits."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"
