"""How many requests an instance works on at once, which decides when another one is worth its price.

Figures are GPT-J-6B's in FP16 (docs/benchmarks, docs/architecture.md); what the service really has is in its log
(``cache_ready``) and in ``/metrics``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gptj_serve.aws.instances import InstanceType

GIB = 1 << 30
WEIGHTS_GIB = 11.3
"""The weights as the GPU holds them."""
WORKSPACE_GIB = 1.1
"""GPU memory beyond weights and cache, as measured."""
CACHE_BYTES_PER_TOKEN = 458_752
"""Keys and values of 28 blocks, 4096 wide, two bytes each."""

CONTINUOUS_ROWS, STATIC_ROWS = 64, 8
"""Sequences at once if GPTJ_MAX_BATCH_SIZE does not say: of the fused engine, of the other two."""

SHARE = 0.7
"""Of what an instance works on at once, the share that scaling keeps it near: another one takes minutes to start."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Requests at once.

    Attributes:
        num_requests: How many, from 1.
        why: What sets the limit, in words.
    """

    num_requests: int
    why: str

    @property
    def target(self) -> int:
        """Requests at once that scaling aims at, from 1."""
        return max(1, int(self.num_requests * SHARE))


def capacity(environment: Mapping[str, str], instance: InstanceType | None, request_tokens: int) -> Capacity:
    """Requests that one copy of the model works on at once: the smaller of batch and cache.

    Args:
        environment: The model's.
        instance: Where it runs; None if it is not known.
        request_tokens: Tokens of a usual request, prompt and answer together, from 1.
    """
    continuous = environment.get("GPTJ_ENGINE", "").strip().lower() in ("", "auto", "fused")
    asked = environment.get("GPTJ_MAX_BATCH_SIZE", "").strip()
    if asked.isdigit() and int(asked) > 0:
        batch = Capacity(int(asked), f"GPTJ_MAX_BATCH_SIZE={asked}")
    else:
        rows = CONTINUOUS_ROWS if continuous else STATIC_ROWS
        batch = Capacity(rows, f"the engine's own batch size, {rows}")
    if not continuous or instance is None or instance.gpu is None:
        return batch
    num_tokens = cache_tokens(instance)
    fitting = max(1, num_tokens // request_tokens)
    if fitting >= batch.num_requests:
        return batch
    why = f"{fitting} requests of {request_tokens} tokens fit into the {instance.gpu.name}'s cache of {num_tokens}"
    return Capacity(fitting, why)


def cache_tokens(instance: InstanceType) -> int:
    """Tokens that the cache holds on one GPU of it, 0 if the weights leave no room."""
    free_gib = (instance.gpu.memory_gib if instance.gpu else 0.0) - WEIGHTS_GIB - WORKSPACE_GIB
    return max(0, int(free_gib * GIB / CACHE_BYTES_PER_TOKEN))
