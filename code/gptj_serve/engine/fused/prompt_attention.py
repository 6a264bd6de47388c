"""Attention of prompts, by the best that PyTorch has for the card. Shape suffixes as in `kernels`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F

from gptj_serve.engine.fused.kernels import State


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A sequence's neighbouring tokens among those of a prefill.

    Attributes:
        first: Index of its first token.
        num_tokens: How many there are.
        start: Position of the first.
        blocks_N: int64, the cache blocks up to its last position; None when `start` is 0.
    """

    first: int
    num_tokens: int
    start: int
    blocks_N: torch.Tensor | None  # noqa: N815


class PromptAttention(Protocol):
    """From scratch.projected, and the cache before it, to scratch.mixed."""

    def run(self, layer: int) -> None:
        """One layer's."""
        ...


def prompt_attentions(
    state: State, parts: Sequence[PromptPart], borders: torch.Tensor
) -> list[PromptAttention]:
    """What computes the attention of these parts.

    Args:
        state: Where everything lies.
        parts: In the order of their tokens, without gaps.
        borders: int32, where each begins, and where the last ends.
    """
    found: list[PromptAttention] = []
    for first, end in _runs(parts):
        if end - first > 1 and _has_flash_attention(state.cache.keys_LNHSE):
            found.append(_Beginnings(state, parts[first:end], borders[first : end + 1]))
        else:
            found.extend(_Chunk(state, part) for part in parts[first:end])
    return found


def _runs(parts: Sequence[PromptPart]) -> Iterator[tuple[int, int]]:
    """Neighbours that begin their sequences, and those that do not, as first and end."""
    first = 0
    for _, run in groupby(parts, key=lambda part: part.start == 0):
        end = first + len(list(run))
        yield first, end
        first = end


def _heads(state: State, first: int, end: int) -> torch.Tensor:
    """Of these tokens: query, keys and values, [T, 3, H, E]."""
    geometry = state.geometry
    heads_TX = state.scratch.projected_TP[first:end, : 3 * geometry.width]
    return heads_TX.view(end - first, 3, geometry.num_heads, geometry.head_dim)


def _out(state: State, first: int, end: int) -> torch.Tensor:
    """Where their attention goes, [T, H, E]."""
    geometry = state.geometry
    mixed_TD = state.scratch.mixed_TK[first:end, geometry.inner :]
    return mixed_TD.view(end - first, geometry.num_heads, geometry.head_dim)


class _Beginnings:
    """The first tokens of several sequences, in one launch a layer."""

    def __init__(self, state: State, parts: Sequence[PromptPart], borders: torch.Tensor) -> None:
        self._first, end = parts[0].first, parts[-1].first + parts[-1].num_tokens
        # from the first token of all on, since the borders count from there
        self._query, self._keys, self._values = _heads(state, 0, end).unbind(1)
        self._out = _out(state, self._first, end)
        self._borders = borders
        self._longest = max(part.num_tokens for part in parts)

    def run(self, layer: int) -> None:  # noqa: ARG002
        borders, longest = self._borders, self._longest
        flash = torch.ops.aten._flash_attention_forward
        tokens = (self._query, self._keys, self._values)
        mixed_THE = flash(*tokens, borders, borders, longest, longest, 0.0, True, False)[0]
        self._out.copy_(mixed_THE[self._first :])


class _Chunk:
    """Some tokens of one sequence."""

    def __init__(self, state: State, part: PromptPart) -> None:
        end = part.first + part.num_tokens
        heads_T3HE = _heads(state, part.first, end)
        self._query, self._keys, self._values = heads_T3HE.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
        self._out = _out(state, part.first, end).transpose(0, 1).unsqueeze(0)
        self._cache = state.cache
        self._part = part

    def run(self, layer: int) -> None:
        keys, values = self._keys, self._values
        if self._part.blocks_N is not None:
            keys, values = self._cached(layer)
        self._out.copy_(_causal_attention(self._query, keys, values))

    def _cached(self, layer: int) -> list[torch.Tensor]:
        end = self._part.start + self._part.num_tokens
        assert self._part.blocks_N is not None
        return [
            kind_LNHSE[layer]
            .index_select(0, self._part.blocks_N)
            .transpose(0, 1)
            .flatten(1, 2)[None, :, :end]
            for kind_LNHSE in (self._cache.keys_LNHSE, self._cache.values_LNHSE)
        ]


def _has_flash_attention(like: torch.Tensor) -> bool:
    is_half = like.is_cuda and like.dtype == torch.float16
    return is_half and torch.cuda.get_device_capability(like.device) >= (8, 0)


def _causal_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of the last of all positions, [1, heads, positions, head_dim], as fast as PyTorch can."""
    if _has_flash_attention(query):
        # Left to itself PyTorch may take cuDNN, which prepares each new length anew. The mask of later chunks
        # is in `torch.nn.attention.bias`, which takes two seconds to import and calls the same.
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        attention: torch.Tensor = flash(query, keys, values, 0.0, True)[0]
        return attention
    num_queries, num_keys = query.shape[2], keys.shape[2]
    if num_queries == num_keys:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(
        num_keys - num_queries
    )
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
