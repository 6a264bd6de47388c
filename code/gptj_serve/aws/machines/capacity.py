"""Estimates how many requests an instance works on at once, which decides when another is worth its price.

The arithmetic is that of `fit`, for GPT-J-6B in FP16; the real figures of a service are in its log
(``cache_ready``) and in ``/metrics``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gptj_serve.aws.machines.fit import ELEMENT_BYTES, GPT_J_6B, need_of, usable_bytes
from gptj_serve.aws.machines.instances import Gpu, InstanceType
from gptj_serve.engine.fused import memory_needs
from gptj_serve.engine.fused.layout import BLOCK_SIZE

STATIC_ROWS = 8
"""Sequences in a batch of the other two engines unless GPTJ_MAX_BATCH_SIZE says otherwise."""

SHARE = 0.7
"""Scaling keeps instances at this share of their capacity, because another one takes minutes to start."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many requests run at once.

    Attributes:
        num_requests: How many requests, from 1.
        why: What sets the limit, in words.
    """

    num_requests: int
    why: str

    @property
    def target(self) -> int:
        """How many requests at once scaling aims at, from 1."""
        return max(1, int(self.num_requests * SHARE))


def capacity(environment: Mapping[str, str], instance: InstanceType | None, request_tokens: int) -> Capacity:
    """How many requests a copy of the model works on at once: what fits into both batch and cache.

    Args:
        environment: The environment of the model's container.
        instance: The instance type; None if it is not known.
        request_tokens: Tokens of a usual request, prompt and answer together, from 1.
    """
    continuous = environment.get("GPTJ_ENGINE", "").strip().lower() in ("", "auto", "fused")
    asked = environment.get("GPTJ_MAX_BATCH_SIZE", "").strip()
    if asked.isdigit() and int(asked) > 0:
        batch = Capacity(int(asked), f"GPTJ_MAX_BATCH_SIZE={asked}")
    else:
        rows = memory_needs.MAX_AUTO_BATCH_SIZE if continuous else STATIC_ROWS
        batch = Capacity(rows, f"the engine's own batch size, {rows}")
    if not continuous or instance is None or instance.gpu is None:
        return batch
    num_tokens = cache_tokens(instance.gpu, batch.num_requests)
    fitting = max(1, num_tokens // request_tokens)
    if fitting >= batch.num_requests:
        return batch
    where = f"{num_tokens} tokens of cache on the {instance.gpu.name}"
    why = f"{where} hold that many requests of {request_tokens}"
    return Capacity(fitting, why)


def cache_tokens(gpu: Gpu, batch_size: int) -> int:
    """How many tokens the fused engine's cache holds on a GPU; 0 if the weights leave no room."""
    left_bytes = usable_bytes(gpu) - need_of(GPT_J_6B, gpu, 0, batch_size).total_bytes
    of_block = memory_needs.block_bytes(GPT_J_6B, ELEMENT_BYTES)
    return max(0, left_bytes // of_block * BLOCK_SIZE)
