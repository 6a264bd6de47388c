"""Decides whether a model fits an instance's GPU, before anything is made.

The arithmetic is the fused engine's own (`engine/fused/memory_needs.py`). The other engines take less at the
same context with one sequence, so what fits for the fused engine also starts with them.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from gptj_serve.aws.machines.instances import Gpu, InstanceType, all_gpu_instances
from gptj_serve.engine.fused import memory_needs
from gptj_serve.engine.fused.layout import BLOCK_SIZE
from gptj_serve.models.architecture import Architecture
from gptj_serve.models.families import read_architecture, shapes_of

ELEMENT_BYTES = 2
"""FP16: the one precision that the engines have on a GPU."""

DRIVER_BYTES = memory_needs.GIB // 2
"""The memory that CUDA takes before anything is loaded: its context, and PyTorch's and our kernels."""

GPT_J_6B = read_architecture({"model_type": "gptj"}, Path("GPT-J-6B"))


@dataclass(frozen=True, slots=True)
class Need:
    """What a model needs on a GPU, in bytes, with room for one sequence of the whole context."""

    weights_bytes: int
    cache_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        """The sum of all parts."""
        return self.weights_bytes + self.cache_bytes + self.working_bytes

    def describe(self) -> str:
        """The needs in words."""
        parts = (self.weights_bytes, self.cache_bytes, self.working_bytes)
        weights, cache, working = (f"{part / memory_needs.GIB:.1f}" for part in parts)
        return f"weights in FP16 {weights}, cache for one sequence {cache}, working memory {working} GiB"


def usable_bytes(gpu: Gpu) -> int:
    """The memory of a GPU that is left when CUDA has started."""
    return int(gpu.memory_gib * memory_needs.GIB) - DRIVER_BYTES


def need_of(config: Architecture, gpu: Gpu, context: int, batch_size: int | None) -> Need:
    """What a model needs.

    Args:
        config: The model's dimensions.
        gpu: The GPU; smaller ones get smaller prompt steps.
        context: Positions of the longest sequence.
        batch_size: Sequences that run together at most; None is the engine's default.
    """
    rows = batch_size or memory_needs.MAX_AUTO_BATCH_SIZE
    _, max_tokens = memory_needs.prefill_sizes(int(gpu.memory_gib * memory_needs.GIB))
    scratch = memory_needs.scratch_bytes(config, max_tokens + rows, rows)
    of_block = memory_needs.block_bytes(config, ELEMENT_BYTES)
    return Need(
        weights_bytes=ELEMENT_BYTES * sum(map(math.prod, shapes_of(config).values())),
        cache_bytes=memory_needs.num_blocks(context) * of_block,
        working_bytes=scratch + memory_needs.reserved_bytes(rows, config.vocab_size),
    )


def longest_context(config: Architecture, gpu: Gpu, batch_size: int | None) -> int:
    """The longest context that fits, at most the model's; 0 if none fits."""
    need = need_of(config, gpu, 0, batch_size)
    left_bytes = usable_bytes(gpu) - need.total_bytes
    of_block = memory_needs.block_bytes(config, ELEMENT_BYTES)
    return max(0, min(config.max_positions, left_bytes // of_block * BLOCK_SIZE))


def fits(config: Architecture, gpu: Gpu, context: int, batch_size: int | None) -> bool:
    """Whether a model fits a GPU."""
    return need_of(config, gpu, context, batch_size).total_bytes <= usable_bytes(gpu)


def fitting_types(config: Architecture, context: int, batch_size: int | None) -> list[InstanceType]:
    """The types to recommend for a model: of each family that it fits, the smallest type, with one GPU if
    there is one."""
    found: dict[str, InstanceType] = {}
    for instance in all_gpu_instances():
        if instance.gpu and not instance.warning and fits(config, instance.gpu, context, batch_size):
            found.setdefault(instance.family, instance)
    return list(found.values())


def why_it_does_not_fit(
    config: Architecture, instance: InstanceType, context: int, batch_size: int | None
) -> tuple[str, str] | None:
    """What is wrong and what would fit; None if the model fits, or if the type has no GPU."""
    gpu = instance.gpu
    if gpu is None or fits(config, gpu, context, batch_size):
        return None
    need = need_of(config, gpu, context, batch_size)
    wrong = (
        f"the model does not fit {instance.name}: it needs {need.total_bytes / memory_needs.GIB:.1f} GiB "
        f"({need.describe()}), and one {gpu.name} has {usable_bytes(gpu) / memory_needs.GIB:.1f} GiB to give"
    )
    ways = []
    shorter = longest_context(config, gpu, batch_size)
    if shorter >= 2:
        ways.append(f"--env GPTJ_MAX_CONTEXT={shorter} (instead of {context})")
    types = fitting_types(config, context, batch_size)
    if types:
        ways.append("--instance-type " + " or ".join(one.name for one in types[:4]))
    return wrong, "it fits with " + ", or ".join(ways) if ways else "no instance type has such a GPU"
