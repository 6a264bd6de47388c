"""Attention of prompts, by the best that there is for the card. Shape suffixes as in `kernels`."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, Kernels, PromptPart, Prompts, State

FLASH = torch.ops.aten._flash_attention_forward.default

MAX_SHORT_PROMPT = 256
"""Tokens of prompts that the kernels are faster for than FlashAttention, whose tiles are larger."""


def prompt_attention(
    state: State, kernels: Kernels, prompts: Prompts, num_tokens: int
) -> Callable[[int], None]:
    """What computes one layer's attention of a prefill's prompts, from scratch.projected to scratch.mixed.

    Rows of tokens that are decoded beside the prompts may be written too, so those are attended to
    afterwards.

    Args:
        state: Where everything lies.
        kernels: Made for that state.
        prompts: Whose attention.
        num_tokens: Of the whole prefill.
    """
    is_flash = prompts.all_begin and _has_flash_attention(state.scratch.projected_TP)
    if is_flash and not (kernels.can_attend_prompts and prompts.max_queries <= MAX_SHORT_PROMPT):
        return _FlashAttention(state, prompts, num_tokens)
    if kernels.can_attend_prompts:
        return partial(kernels.attend_prompts, prompts, num_tokens)
    return _PlainAttention(state, prompts)


def _has_flash_attention(like: torch.Tensor) -> bool:
    is_half = like.is_cuda and like.dtype == torch.float16
    return is_half and torch.cuda.get_device_capability(like.device) >= (8, 0)


def _heads(state: State, tokens: slice) -> torch.Tensor:
    """Of these tokens: query, keys and values, [3, T, H, E]."""
    architecture = state.architecture
    heads_TX = state.scratch.projected_TP[tokens, : 3 * architecture.attention_width]
    return heads_TX.view(-1, 3, architecture.num_heads, architecture.head_dim).transpose(0, 1)


def _out(state: State, tokens: slice) -> torch.Tensor:
    """Where their attention goes, [T, H, E]."""
    architecture = state.architecture
    mixed_TA = state.scratch.mixed_TK[tokens, architecture.inner :]
    return mixed_TA.view(-1, architecture.num_heads, architecture.head_dim)


class _FlashAttention:
    """Prompts that begin, all in one launch a layer.

    Left to itself PyTorch may take cuDNN, which prepares each new length anew.
    """

    def __init__(self, state: State, prompts: Prompts, num_tokens: int) -> None:
        everything = slice(num_tokens)
        self._tokens = _heads(state, everything).unbind(0)
        self._out_THE = _out(state, everything)
        self._prompts = prompts

    def __call__(self, layer: int) -> None:
        borders, longest = self._prompts.query_borders_P, self._prompts.max_queries
        is_causal = True
        found = FLASH(*self._tokens, borders, borders, longest, longest, 0.0, is_causal, False)
        self._out_THE.copy_(found[0])


class _PlainAttention:
    """Prompt by prompt with what PyTorch chooses: on CPUs, and on GPUs without FlashAttention."""

    def __init__(self, state: State, prompts: Prompts) -> None:
        self._state = state
        self._rows: list[tuple[PromptPart, torch.Tensor, torch.Tensor | None]] = []
        first_key = 0
        for part in prompts.parts:
            rows_K = prompts.key_rows_K[first_key : first_key + part.end].long()
            self._rows.append((part, rows_K, _mask(part, rows_K.device)))
            first_key += part.end

    def __call__(self, layer: int) -> None:
        cache = self._state.cache
        for part, rows_K, mask in self._rows:
            tokens = slice(part.first, part.first + part.num_tokens)
            query_THE, keys_THE, values_THE = _heads(self._state, tokens)
            if part.start:
                keys_THE, values_THE = (
                    kind_LNHSE[layer][rows_K // BLOCK_SIZE, :, rows_K % BLOCK_SIZE]
                    for kind_LNHSE in (cache.keys_LNHSE, cache.values_LNHSE)
                )
            query, keys, values = (of.transpose(0, 1)[None] for of in (query_THE, keys_THE, values_THE))
            mixed_1HTE = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, is_causal=mask is None
            )
            _out(self._state, tokens).copy_(mixed_1HTE[0].transpose(0, 1))


def _mask(part: PromptPart, device: torch.device) -> torch.Tensor | None:
    """Which keys each token sees; None where PyTorch's own causal mask says it."""
    if not part.start:
        return None
    everything = torch.ones(part.num_tokens, part.end, dtype=torch.bool, device=device)
    return everything.tril(part.start)
