"""The runner's first steps: everything runs once before a client waits for it, and two ways are compared."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from gptj_serve.engine.fused.layout import BLOCK_SIZE
from gptj_serve.engine.fused.runner import FusedRunner
from gptj_serve.engine.fused.schedule.plan import Row
from gptj_serve.engine.sampling import sampler
from gptj_serve.errors import StartupError
from gptj_serve.request import GenerationRequest, SamplingParams

CHECK_TOKENS = 40
MAX_APART = 0.05
"""Root mean square of what the two ways to decode may differ by, over that of the logits."""

PREFILL_SIZES = (2048, 512, 192, 64, 16)
"""Prompts that warm the libraries up: other sizes take other kernels, which are loaded at first use."""


@torch.inference_mode()
def warm_up(runner: FusedRunner) -> None:
    """Run everything once and capture the graphs."""
    runner.graphs.capture()
    runner.prefill_graphs.capture()
    limits = runner.limits
    for num_tokens in PREFILL_SIZES:
        # a prompt of that length, and one more chunk of it, which finds the first in the cache
        num_tokens = min(num_tokens, limits.max_prefill, limits.max_context - 1)
        starts = (0, num_tokens) if 2 * num_tokens < limits.max_context else (0,)
        _prefill_alone(runner, (0,) * num_tokens, starts)
    _warm_up_mixed(runner)
    logits_TV = runner.state.scratch.logits_TV
    sampler.warm_up(logits_TV.device, logits_TV.dtype, limits.max_batch_size, limits.vocab_size)


@torch.inference_mode()
def check(runner: FusedRunner) -> None:
    """Decode one token both ways, through the kernels and through cuBLAS.

    Raises:
        StartupError: The two are far apart, or not numbers: something is wrong with the kernels on this
            GPU, or with the weights.
    """
    limits = runner.limits
    length = min(CHECK_TOKENS, limits.max_context - 1)
    prompt_ids = tuple(number % limits.vocab_size for number in range(1, length + 1))
    (row,) = _prefill_alone(runner, prompt_ids, (0,))
    own_V, other_V = _both_ways(runner, replace(row, start=row.end, token_ids=None))
    apart = float((own_V - other_V).norm() / other_V.norm())
    if not apart <= MAX_APART:
        raise StartupError(
            f"the fused engine's kernels and cuBLAS do not agree on the next token ({apart:.1%} apart, "
            f"{MAX_APART:.0%} allowed): wrong weights, or kernels that do not work on this GPU; "
            "GPTJ_ENGINE=hf tells which"
        )


def _both_ways(runner: FusedRunner, row: Row) -> list[torch.Tensor]:
    """The logits of one decoded token, through the kernels and through cuBLAS."""
    found = []
    for through_cublas in (False, True):
        runner.graphs.decode([row], through_cublas=through_cublas)
        found.append(runner.state.scratch.logits_TV[0].clone())
    return found


def _warm_up_mixed(runner: FusedRunner) -> None:
    """Two prompts in one step, and a sequence that is decoded beside them."""
    (row,) = _prefill_alone(runner, (0, 0), (0,))
    prompt = replace(row, samples=False)
    runner.prefill([prompt, prompt], [replace(row, start=row.end, token_ids=None)])


def _prefill_alone(runner: FusedRunner, token_ids: tuple[int, ...], starts: Sequence[int]) -> list[Row]:
    """Prefill these tokens at each of these positions, in the cache's first blocks."""
    request = GenerationRequest("warm-up", token_ids, SamplingParams(1))
    blocks = range(-(-(starts[-1] + len(token_ids) + 1) // BLOCK_SIZE))
    rows = [Row(0, 0, request, 0, blocks, start, token_ids, samples=True) for start in starts]
    for row in rows:
        runner.prefill([row], [])
    return rows
