"""All memory that the fused engine works on beside the weights: names, shapes and bytes. No torch here.

Allocation, the arithmetic of what fits (here and in deploying) and the library's structures follow this one
description.
"""

import math
from dataclasses import dataclass
from typing import Literal

from gptj_serve.models.architecture import Architecture

BLOCK_SIZE = 16
"""Positions in one block of the KV cache: compiled into the kernels."""

MAX_SPLITS = 8
"""Thread blocks that share one head's attention: compiled into the kernels."""

Kind = Literal["activation", "float32", "int32", "int64"]

_BYTES: dict[Kind, int] = {"float32": 4, "int32": 4, "int64": 8}


@dataclass(frozen=True, slots=True)
class Array:
    """One array on the device.

    Attributes:
        name: Of the field that holds it.
        shape: Its dimensions.
        kind: Type of its numbers; "activation" is FP16 on a GPU and FP32 on a CPU.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind

    def num_bytes(self, activation_bytes: int) -> int:
        """Its size, where an activation takes so many bytes."""
        return math.prod(self.shape) * _BYTES.get(self.kind, activation_bytes)


def scratch_arrays(architecture: Architecture, max_tokens: int, max_rows: int) -> tuple[Array, ...]:
    """What `gptj_serve.engine.fused.kernels.protocol.Scratch` holds, field by field.

    Args:
        architecture: The model's.
        max_tokens: Tokens in one call at most.
        max_rows: Sequences in one call at most.
    """
    width, attention_width, inner = architecture.width, architecture.attention_width, architecture.inner
    parts = MAX_SPLITS * (architecture.head_dim + 2)
    return (
        Array("hidden_TD", (max_tokens, width), "float32"),
        Array("normed_TD", (max_tokens, width), "activation"),
        Array("query_TA", (max_rows, attention_width), "activation"),
        Array("projected_TP", (max_tokens, 3 * attention_width + inner), "activation"),
        Array("mixed_TK", (max_tokens, inner + attention_width), "activation"),
        Array("added_TD", (max_tokens, width), "activation"),
        Array("logits_TV", (max_rows, architecture.vocab_size), "float32"),
        Array("chosen_2T", (2, max_rows), "int64"),
        Array("partial", (max_rows * architecture.num_heads * parts,), "float32"),
        Array("counters", (sum(counter_sizes(architecture, max_rows)),), "int32"),
    )


def counter_sizes(architecture: Architecture, max_rows: int) -> tuple[int, ...]:
    """Numbers of each part of the counters: best (two a row), arrived_heads, arrived_splits, arrived."""
    heads = architecture.num_heads
    return (2 * max_rows, heads * 8, max_rows * heads, 8)


def cache_arrays(architecture: Architecture, num_blocks: int) -> tuple[Array, Array]:
    """What `gptj_serve.engine.fused.kernels.protocol.Cache` holds."""
    shape = (architecture.num_layers, num_blocks, architecture.num_heads, BLOCK_SIZE, architecture.head_dim)
    return Array("keys_LNHSE", shape, "activation"), Array("values_LNHSE", shape, "activation")


def history_array(max_batch_size: int, max_context: int) -> Array:
    """Token ids of every slot, and a row for padding."""
    return Array("history_SC", (max_batch_size + 1, max_context + 1), "int64")
