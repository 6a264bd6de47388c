"""Puts the fused engine together: weights, kernels, and as much KV cache as there is memory for."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from gptj_serve.engine.failures import BackendDead, BatchLost
from gptj_serve.engine.fused import warm_up
from gptj_serve.engine.fused.kernels.cuda import CudaKernels
from gptj_serve.engine.fused.kernels.library import find_library
from gptj_serve.engine.fused.kernels.plain import PlainKernels
from gptj_serve.engine.fused.kernels.protocol import (
    Cache,
    Kernels,
    State,
    empty_array,
    make_rotary,
    make_scratch,
)
from gptj_serve.engine.fused.layout import BLOCK_SIZE, cache_arrays, history_array
from gptj_serve.engine.fused.memory_needs import (
    GIB,
    MAX_AUTO_BATCH_SIZE,
    MAX_PREFILL,
    block_bytes,
    num_blocks,
    prefill_sizes,
    reserved_bytes,
)
from gptj_serve.engine.fused.runner import FusedRunner
from gptj_serve.engine.fused.schedule.plan import RunnerLimits
from gptj_serve.engine.fused.weights.load import load_weights
from gptj_serve.engine.fused.weights.pack import PackedWeights
from gptj_serve.engine.start_log import logged_warm_up
from gptj_serve.errors import StartupError
from gptj_serve.logs import log_event
from gptj_serve.models.architecture import Architecture
from gptj_serve.models.model_dir import Checkpoint

logger = logging.getLogger(__name__)

CPU_CACHE_TOKENS = 8192


def load_fused(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    max_batch_size: int | None = None,
    max_context: int | None = None,
    library: Path | None = None,
    env: Mapping[str, str] = os.environ,
) -> FusedRunner:
    """Load the model and warm it up: CUDA kernels in FP16 on a GPU, their plain twin in FP32 on a CPU.

    Args:
        checkpoint: What to load; `gptj_serve.engine.fused.obstacle.obstacle` has none against it.
        device: Where to.
        max_batch_size: Sequences that run together at most; None is 64.
        max_context: Positions of a sequence at most, no more than the model's; None is the model's.
        library: The CUDA kernels, if they have been found already; None looks for them, on a GPU.
        env: For finding a compiler.

    Raises:
        StartupError: The kernels are not to be had, or the memory does not suffice.
    """
    architecture = checkpoint.architecture
    is_cuda = device.type == "cuda"
    if is_cuda and library is None:
        library = find_library(env, [_architecture(device)])
    max_context = min(max_context or architecture.max_positions, architecture.max_positions)
    # on a GPU the cache takes what the weights leave
    cache = {} if is_cuda else _cpu_cache_needs(architecture, max_context)
    weights = load_weights(checkpoint, device, torch.float16 if is_cuda else torch.float32, beside=cache)
    max_batch_size = max_batch_size or MAX_AUTO_BATCH_SIZE
    gpu_bytes = torch.cuda.get_device_properties(device).total_memory if is_cuda else None
    prefill_chunk, max_prefill = prefill_sizes(gpu_bytes)
    state = make_state(architecture, weights, max_batch_size, max_context, max_prefill)
    limits = RunnerLimits(
        max_batch_size=max_batch_size,
        max_context=max_context,
        vocab_size=architecture.vocab_size,
        block_size=BLOCK_SIZE,
        num_blocks=state.cache.keys_LNHSE.shape[1],
        prefill_chunk=prefill_chunk,
        max_prefill=max_prefill,
    )
    kernels: Kernels = PlainKernels(state) if library is None else CudaKernels(library, state)
    runner = FusedRunner(state, kernels, limits)
    with logged_warm_up():
        _warm_up(runner)
    _log(limits, state)
    return runner


def make_state(
    architecture: Architecture,
    weights: PackedWeights,
    max_batch_size: int,
    max_context: int,
    max_prefill: int = MAX_PREFILL,
) -> State:
    """Allocate everything that the model works on.

    Args:
        architecture: The model's dimensions.
        weights: Its weights.
        max_batch_size: Slots.
        max_context: Positions of each.
        max_prefill: Prompt tokens in one step.

    Raises:
        StartupError: Not even one sequence of the longest context fits.
    """
    like = weights.embedding_VD
    try:
        scratch = make_scratch(architecture, like, max_prefill + max_batch_size, max_batch_size)
    except torch.OutOfMemoryError as error:
        raise StartupError(
            f"{_gpu_name(like)}: no memory is left beside the weights; use a larger GPU"
        ) from error
    blocks = _cache_blocks(architecture, like, max_batch_size, max_context)
    return State(
        architecture=architecture,
        weights=weights,
        rotary_PR2=make_rotary(architecture, max_context).to(like.device),
        cache=Cache(*(empty_array(array, like).zero_() for array in cache_arrays(architecture, blocks))),
        history_SC=empty_array(history_array(max_batch_size, max_context), like).zero_(),
        scratch=scratch,
    )


def _cpu_cache_blocks(max_context: int) -> int:
    return max(num_blocks(max_context), CPU_CACHE_TOKENS // BLOCK_SIZE)


def _cpu_cache_needs(architecture: Architecture, max_context: int) -> dict[str, int]:
    of_block = block_bytes(architecture, torch.float32.itemsize)
    return {f"KV cache for GPTJ_MAX_CONTEXT={max_context}": _cpu_cache_blocks(max_context) * of_block}


def _cache_blocks(
    architecture: Architecture, like: torch.Tensor, max_batch_size: int, max_context: int
) -> int:
    """Cache blocks: as many as all slots can fill, or as there is memory for."""
    of_one = num_blocks(max_context)
    if like.device.type != "cuda":
        return _cpu_cache_blocks(max_context)
    free_bytes, _ = torch.cuda.mem_get_info(like.device)
    of_block = block_bytes(architecture, like.element_size())
    to_leave = reserved_bytes(max_batch_size, architecture.vocab_size)
    there_are = min((free_bytes - to_leave) // of_block, max_batch_size * of_one)
    if there_are < of_one:
        needed_bytes = of_one * of_block + to_leave
        raise StartupError(
            f"{_gpu_name(like)}: beside the weights {free_bytes / GIB:.2f} GiB are "
            f"free; a sequence of {max_context} tokens needs {needed_bytes / GIB:.2f} GiB: "
            "lower GPTJ_MAX_CONTEXT or use a larger GPU"
        )
    return there_are


def _warm_up(runner: FusedRunner) -> None:
    try:
        warm_up.warm_up(runner)
        warm_up.check(runner)
    except (BatchLost, torch.OutOfMemoryError) as error:
        raise StartupError(
            f"the GPU's memory does not suffice for batches of {runner.limits.max_batch_size}: "
            "lower GPTJ_MAX_BATCH_SIZE or use a larger GPU"
        ) from error
    except BackendDead as error:
        cure = "set GPTJ_ENGINE=deepspeed or hf"
        if "no kernel image" in str(error):
            cure = f"build the image with this GPU's compute capability in KERNEL_ARCHS, or {cure}"
        raise StartupError(f"the fused engine's kernels could not be started ({error}); {cure}") from error


def _gpu_name(like: torch.Tensor) -> str:
    return torch.cuda.get_device_name(like.device)


def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def _log(limits: RunnerLimits, state: State) -> None:
    log_event(
        logger,
        "cache_ready",
        "the KV cache is ready",
        cache_tokens=limits.num_blocks * limits.block_size,
        cache_bytes=2 * state.cache.keys_LNHSE.nbytes,
        max_batch_size=limits.max_batch_size,
    )
