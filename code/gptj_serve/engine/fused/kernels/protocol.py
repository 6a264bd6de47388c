"""What the model needs besides matrix products: the protocol that the CUDA kernels and their twin in plain
PyTorch meet, and the tensors they share.

Shape suffixes: T tokens of one call, D width of the residual stream, A width of attention (all heads), F
width of the MLP, P what products that project give (3A + F), K what those that add take (F + A), V
vocabulary, L layers, H heads, E numbers of a head, N cache blocks, S positions of a block, W blocks of the
longest sequence.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from gptj_serve.engine.fused.layout import BLOCK_SIZE as BLOCK_SIZE
from gptj_serve.engine.fused.layout import Array, scratch_arrays
from gptj_serve.engine.fused.weights.pack import PackedWeights
from gptj_serve.models.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Cache:
    """The KV cache: ``keys_LNHSE`` and ``values_LNHSE``, in the weights' type."""

    keys_LNHSE: torch.Tensor
    values_LNHSE: torch.Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that one call computes. A negative position marks padding: nothing of it lasts.

    Attributes:
        positions_T: int32.
        cache_rows_T: int32, block * BLOCK_SIZE + position % BLOCK_SIZE.
        history_rows_T: int32, where in the history (as one row) the token's id is.
        tables_TW: int32, each token's cache blocks in order; None where no token is decoded.
        ids_T: int32, ids that the history does not have yet, -1 where it has; None where it has all.
    """

    positions_T: torch.Tensor
    cache_rows_T: torch.Tensor
    history_rows_T: torch.Tensor
    tables_TW: torch.Tensor | None = None
    ids_T: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.positions_T.shape[0]

    def select(self, which: slice | torch.Tensor) -> "Tokens":
        """Some of the tokens, without their tables and ids."""
        return Tokens(self.positions_T[which], self.cache_rows_T[which], self.history_rows_T[which])


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A sequence's neighbouring tokens among those of a prefill.

    Attributes:
        first: Index of its first token.
        num_tokens: How many there are.
        start: Position of the first.
    """

    first: int
    num_tokens: int
    start: int

    @property
    def end(self) -> int:
        """Position after the last."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class Prompts:
    """What attention has to know of a prefill's prompts; P prompts and one, K keys of all of them.

    Attributes:
        parts: One a prompt, in the order of their tokens; a CUDA graph has none, since it serves many.
        query_borders_P: int32, where each prompt's tokens begin, and where the last one's end.
        key_borders_P: int32, the same of their keys.
        key_rows_K: int32, where in the cache each key lies, block * BLOCK_SIZE + position % BLOCK_SIZE.
        all_begin: None has any key in the cache before this pass.
        max_queries: Tokens of one prompt at most.
    """

    parts: tuple[PromptPart, ...]
    query_borders_P: torch.Tensor
    key_borders_P: torch.Tensor
    key_rows_K: torch.Tensor
    all_begin: bool
    max_queries: int


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory that the kernels write, for as many tokens or sequences as one call may have.

    Attributes:
        hidden_TD: float32, the residual stream.
        normed_TD: Its LayerNorm.
        query_TA: Queries of one decode step.
        projected_TP: What a product that projects gave: q, k, v, fc_in.
        mixed_TK: gelu(fc_in), then attention: what a product that adds reads.
        added_TD: What a product that adds gave.
        logits_TV: float32.
        chosen_2T: int64: the likeliest tokens; in the second row, as float32, their logits.
        partial: float32, attention's unfinished parts.
        counters: int32, zero between calls.
    """

    hidden_TD: torch.Tensor
    normed_TD: torch.Tensor
    query_TA: torch.Tensor
    projected_TP: torch.Tensor
    mixed_TK: torch.Tensor
    added_TD: torch.Tensor
    logits_TV: torch.Tensor
    chosen_2T: torch.Tensor
    partial: torch.Tensor
    counters: torch.Tensor


def make_scratch(architecture: Architecture, like: torch.Tensor, max_tokens: int, max_rows: int) -> Scratch:
    """Allocate scratch memory.

    Args:
        architecture: The model's.
        like: Has the activations' type and device.
        max_tokens: Tokens in one call at most.
        max_rows: Sequences in one call at most.
    """
    arrays = scratch_arrays(architecture, max_tokens, max_rows)
    return Scratch(**{array.name: empty_array(array, like).zero_() for array in arrays})


def empty_array(array: Array, like: torch.Tensor) -> torch.Tensor:
    """Allocate one array of `gptj_serve.engine.fused.layout`, unfilled.

    Args:
        array: Its description.
        like: Has the activations' type and device.
    """
    dtype = like.dtype if array.kind == "activation" else getattr(torch, array.kind)
    return torch.empty(array.shape, dtype=dtype, device=like.device)


@dataclass(frozen=True, slots=True)
class State:
    """Everything on the device that a step reads or writes.

    Attributes:
        architecture: The model's dimensions.
        weights: Its weights.
        rotary_PR2: float32, cosine and sine for every position and pair.
        cache: The KV cache.
        history_SC: int64, every slot's token ids by position; the last row is padding's.
        scratch: Memory between kernels.
    """

    architecture: Architecture
    weights: PackedWeights
    rotary_PR2: torch.Tensor
    cache: Cache
    history_SC: torch.Tensor
    scratch: Scratch


class Kernels(Protocol):
    """Works on one `State`, which it was made for. Everything is enqueued, nothing is waited for.

    Attributes:
        max_decode_rows: Sequences that `decode` takes; 0 if there is no `decode`.
        can_attend_prompts: There is an `attend_prompts`, which finds everything in device memory.
    """

    max_decode_rows: int
    can_attend_prompts: bool

    def decode(self, tokens: Tokens) -> None:
        """A whole decode step: one token of each sequence in, logits and chosen tokens out."""
        ...

    def embed(self, tokens: Tokens) -> None:
        """Known ids go into the history; hidden and normed of all tokens."""
        ...

    def finish_projection(self, tokens: Tokens, layer: int, product: int) -> None:
        """Take projected apart: rotate q and k in place, cache k and v, mixed = gelu(fc_in)."""
        ...

    def attend_prompts(self, prompts: Prompts, num_tokens: int, layer: int) -> None:
        """mixed = causal attention of prompts over their cache; only where `can_attend_prompts`.

        Args:
            prompts: Whose.
            num_tokens: Of the whole prefill.
            layer: Which one's.
        """
        ...

    def attend(self, tokens: Tokens, layer: int) -> None:
        """mixed = attention of one token a sequence over its cache."""
        ...

    def add(self, num_tokens: int, layer: int, product: int) -> None:
        """hidden += added + the product's bias; normed = its LayerNorm."""
        ...

    def choose(self, tokens: Tokens) -> None:
        """logits += the head's bias; the likeliest token goes into the history behind the one it follows."""
        ...


def make_rotary(architecture: Architecture, num_positions: int) -> torch.Tensor:
    """Cosine and sine, float32, [positions, rotary_dim / 2, 2], on the CPU: computed as Transformers does."""
    dim, base = architecture.positions.dim, architecture.positions.base
    inverse = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64) / dim))
    angles = torch.outer(torch.arange(num_positions, dtype=torch.int64).float(), inverse.float())
    return torch.stack([angles.cos(), angles.sin()], dim=-1).contiguous()
