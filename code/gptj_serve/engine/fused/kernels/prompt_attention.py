"""Attention of prompts, by the best that PyTorch has for the card. Shape suffixes as in `kernels`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F

from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, State

FLASH = torch.ops.aten._flash_attention_forward.default


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
    blocks_N: torch.Tensor | None


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
    architecture = state.architecture
    heads_TX = state.scratch.projected_TP[first:end, : 3 * architecture.attention_width]
    return heads_TX.view(end - first, 3, architecture.num_heads, architecture.head_dim)


def _out(state: State, first: int, end: int) -> torch.Tensor:
    """Where their attention goes, [T, H, E]."""
    architecture = state.architecture
    mixed_TD = state.scratch.mixed_TK[first:end, architecture.inner :]
    return mixed_TD.view(end - first, architecture.num_heads, architecture.head_dim)


class _Beginnings:
    """The first tokens of several sequences, in one launch a layer."""

    def __init__(self, state: State, parts: Sequence[PromptPart], borders: torch.Tensor) -> None:
        self._first, end = parts[0].first, parts[-1].first + parts[-1].num_tokens
        # from the first token of all on, since the borders count from there
        self._query, self._keys, self._values = _heads(state, 0, end).unbind(1)
        self._out = _out(state, self._first, end)
        self._borders = borders
        self._longest = max(part.num_tokens for part in parts)

    def run(self, layer: int) -> None:
        borders, longest = self._borders, self._longest
        tokens = (self._query, self._keys, self._values)
        mixed_THE = FLASH(*tokens, borders, borders, longest, longest, 0.0, True, False)[0]
        self._out.copy_(mixed_THE[self._first :])


class _Chunk:
    """Some tokens of one sequence."""

    def __init__(self, state: State, part: PromptPart) -> None:
        end = part.first + part.num_tokens
        self._query, self._keys, self._values = _heads(state, part.first, end)[None].unbind(2)
        self._out = _out(state, part.first, end)[None]
        self._cached = None if part.blocks_N is None else _CachedRows(state, part, part.blocks_N)
        length = part.start + part.num_tokens
        is_flash, device = _has_flash_attention(self._query), self._query.device
        self._attend = _flash_attention if is_flash else _PlainAttention(part.num_tokens, length, device)

    def run(self, layer: int) -> None:
        keys, values = self._keys, self._values
        if self._cached is not None:
            keys, values = self._cached.gather(layer)
        self._out.copy_(self._attend(self._query, keys, values))


class _CachedRows:
    """A sequence's keys and values of one layer, gathered from its blocks in two calls."""

    def __init__(self, state: State, part: PromptPart, blocks_N: torch.Tensor) -> None:
        num_heads, head_dim = state.architecture.num_heads, state.architecture.head_dim
        end, device = part.start + part.num_tokens, blocks_N.device
        positions_T, heads_H = torch.arange(end, device=device), torch.arange(num_heads, device=device)
        first_rows_T = blocks_N[positions_T // BLOCK_SIZE] * num_heads * BLOCK_SIZE + positions_T % BLOCK_SIZE
        self._rows = (first_rows_T[:, None] + heads_H * BLOCK_SIZE).flatten()
        kinds = (state.cache.keys_LNHSE, state.cache.values_LNHSE)
        self._kinds = [kind_LNHSE.view(len(kind_LNHSE), -1, head_dim).unbind(0) for kind_LNHSE in kinds]
        self._gathered = [kind.new_empty(end * num_heads, head_dim) for kind in kinds]
        self._views = [rows.view(1, end, num_heads, head_dim) for rows in self._gathered]

    def gather(self, layer: int) -> list[torch.Tensor]:
        """Keys and values, [1, T, H, E], until the next call."""
        for layers, gathered in zip(self._kinds, self._gathered, strict=True):
            torch.index_select(layers[layer], 0, self._rows, out=gathered)
        return self._views


def _has_flash_attention(like: torch.Tensor) -> bool:
    is_half = like.is_cuda and like.dtype == torch.float16
    return is_half and torch.cuda.get_device_capability(like.device) >= (8, 0)


def _flash_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of the last of all positions; all are [1, T, H, E].

    Left to itself PyTorch may take cuDNN, which prepares each new length anew. The mask of later chunks is in
    `torch.nn.attention.bias`, too, which takes two seconds to import and calls the same.
    """
    lengths = (query.shape[1], keys.shape[1])
    attention: torch.Tensor = FLASH(query, keys, values, None, None, *lengths, 0.0, True, False)[0]
    return attention


class _PlainAttention:
    """The same with what PyTorch chooses.

    Args:
        num_queries, num_keys: Positions.
        device: Where all is.
    """

    def __init__(self, num_queries: int, num_keys: int, device: torch.device) -> None:
        self._mask = None
        if num_queries < num_keys:
            everything = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
            self._mask = everything.tril(num_keys - num_queries)

    def __call__(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        query, keys, values = (tokens.transpose(1, 2) for tokens in (query, keys, values))
        attention = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=self._mask, is_causal=self._mask is None
        )
        return attention.transpose(1, 2)
