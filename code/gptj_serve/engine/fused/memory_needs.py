"""How much memory of a GPU the fused engine needs. Arithmetic alone, no torch: deploying asks it too."""

GIB = 1 << 30

BLOCK_SIZE = 16
"""Positions in one block of the KV cache: compiled into the kernels."""

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


def block_bytes(num_layers: int, width: int, element_bytes: int) -> int:
    """Size of one block of the cache: keys and values of all layers."""
    return 2 * num_layers * width * BLOCK_SIZE * element_bytes


def num_blocks(num_positions: int) -> int:
    """Blocks that hold so many positions of one sequence."""
    return -(-num_positions // BLOCK_SIZE)


def scratch_bytes(width: int, inner: int, vocab_size: int, max_tokens: int, max_rows: int) -> int:
    """What `kernels.make_scratch` takes, but for what is below a megabyte; FP16 weights.

    Args:
        width, inner, vocab_size: The model's.
        max_tokens: Tokens in one call at most.
        max_rows: Sequences in one call at most.
    """
    of_a_token = 4 * width + 2 * width + 2 * (3 * width + inner) + 2 * (inner + width) + 2 * width
    of_a_row = 4 * vocab_size + 2 * width + 4 * 8 * width
    return max_tokens * of_a_token + max_rows * of_a_row
