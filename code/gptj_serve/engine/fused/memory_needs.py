"""How much memory of a GPU the fused engine needs. Arithmetic alone, no torch: deploying asks it too."""

from gptj_serve.engine.fused.layout import BLOCK_SIZE, cache_arrays, scratch_arrays
from gptj_serve.models.architecture import Architecture

GIB = 1 << 30

FP16_BYTES = 2
MAX_AUTO_BATCH_SIZE = 64
PREFILL_CHUNK = 256
"""Tokens a step while sequences are decoded: such a step must not take more than three times as long as one
without prompts. On an H100 it takes 2.0 to 2.5 times as long (docs/benchmarks)."""
MAX_PREFILL = 2048

RESERVE_BYTES = 3 * GIB // 4
"""GPU memory left for the temporaries of attention, for cuBLAS and the graphs."""

SAMPLER_BYTES = 80
"""And for the sampler, for each sequence and token of the vocabulary."""

SMALL_GPU_BYTES = 20 * GIB
"""GPUs with less memory are slower too: they get a quarter of the prompt tokens a step."""


def prefill_sizes(gpu_bytes: int | None) -> tuple[int, int]:
    """Prompt tokens in one step at most: while sequences are decoded, and ever.

    Args:
        gpu_bytes: The GPU's whole memory, None on a CPU.
    """
    if gpu_bytes is not None and gpu_bytes < SMALL_GPU_BYTES:
        return PREFILL_CHUNK // 4, MAX_PREFILL // 4
    return PREFILL_CHUNK, MAX_PREFILL


def reserved_bytes(max_batch_size: int, vocab_size: int) -> int:
    """Memory that the cache has to leave."""
    return RESERVE_BYTES + max_batch_size * vocab_size * SAMPLER_BYTES


def block_bytes(architecture: Architecture, element_bytes: int) -> int:
    """Size of one block of the cache: keys and values of all layers."""
    return sum(array.num_bytes(element_bytes) for array in cache_arrays(architecture, 1))


def num_blocks(num_positions: int) -> int:
    """Blocks that hold so many positions of one sequence."""
    return -(-num_positions // BLOCK_SIZE)


def scratch_bytes(architecture: Architecture, max_tokens: int, max_rows: int) -> int:
    """What scratch memory takes on a GPU.

    Args:
        architecture: The model's.
        max_tokens: Tokens in one call at most.
        max_rows: Sequences in one call at most.
    """
    return sum(array.num_bytes(FP16_BYTES) for array in scratch_arrays(architecture, max_tokens, max_rows))
