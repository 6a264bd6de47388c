"""GPT-J's forward passes over the packed weights and the paged cache.

A few tokens to decode go through the kernels' own `decode`; prompts and larger batches go through cuBLAS,
with the kernels doing what lies between the products. Launching from Python takes its time: what is the same
for all layers is worked out once a pass. Shape suffixes as in `kernels`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gptj_serve.engine.fused.kernels import Kernels, State, Tokens


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


class FusedModel:
    """Runs on one `State`, whose cache, history and scratch it changes. Waits for nothing.

    Args:
        state: The model and its memory.
        kernels: Made for that state.
    """

    def __init__(self, state: State, kernels: Kernels) -> None:
        self._state = state
        self._kernels = kernels
        weights = state.weights
        self._layers = [
            (layer, in_weight_ND.T, out_weight_DK.T)
            for layer, (in_weight_ND, out_weight_DK) in enumerate(
                zip(weights.in_weight_LND, weights.out_weight_LDK, strict=True)
            )
        ]
        self._head_DV = weights.head_weight_VD.T

    def decode(self, tokens: Tokens, *, through_cublas: bool = False) -> None:
        """One token of each sequence: logits and chosen tokens go to the scratch memory."""
        if tokens.num_tokens <= self._kernels.max_decode_rows and not through_cublas:
            self._kernels.decode(tokens)
            return
        self._blocks(tokens, [])
        self._head(self._state.scratch.normed_TD[: tokens.num_tokens], tokens)

    def prefill(
        self, tokens: Tokens, parts: Sequence[PromptPart], last_R: torch.Tensor, last: Tokens
    ) -> None:
        """Tokens of prompts, whose ids are in the history: they are cached, and some choose a token.

        Args:
            tokens: All of them, sequence by sequence.
            parts: The sequences.
            last_R: int64, indexes of the tokens after which one is chosen; may be empty.
            last: Those tokens. Their logits and chosen tokens come out as `decode` has them.
        """
        self._blocks(tokens, [_PromptAttention(self._state, part) for part in parts])
        if len(last_R):
            self._head(self._state.scratch.normed_TD.index_select(0, last_R), last)

    def _blocks(self, tokens: Tokens, prompts: Sequence["_PromptAttention"]) -> None:
        """Embedding, all blocks, the last LayerNorm; attention of prompts, or of one token a sequence."""
        scratch, kernels, num = self._state.scratch, self._kernels, tokens.num_tokens
        normed_TD, projected_TP = scratch.normed_TD[:num], scratch.projected_TP[:num]
        mixed_TK, added_TD = scratch.mixed_TK[:num], scratch.added_TD[:num]
        kernels.embed(tokens)
        for layer, in_weight_DN, out_weight_KD in self._layers:
            torch.mm(normed_TD, in_weight_DN, out=projected_TP)
            kernels.finish_in(tokens, layer)
            for prompt in prompts:
                prompt.run(layer)
            if not prompts:
                kernels.attend(tokens, layer)
            torch.mm(mixed_TK, out_weight_KD, out=added_TD)
            kernels.add_and_normalise(num, layer)

    def _head(self, normed_TD: torch.Tensor, tokens: Tokens) -> None:
        logits_TV = self._state.scratch.logits_TV[: tokens.num_tokens]
        # float32 logits: in float16, near ones would become equal
        if normed_TD.dtype == torch.float32:
            torch.mm(normed_TD, self._head_DV, out=logits_TV)
        else:
            torch.mm(normed_TD, self._head_DV, out_dtype=torch.float32, out=logits_TV)
        self._kernels.choose(tokens)


class _PromptAttention:
    """Attention of one part of a prefill: scratch.projected, and the cache before it, to scratch.mixed."""

    def __init__(self, state: State, part: PromptPart) -> None:
        geometry, end = state.geometry, part.first + part.num_tokens
        heads_TX = state.scratch.projected_TP[part.first : end, : 3 * geometry.width]
        heads_T3HE = heads_TX.view(part.num_tokens, 3, geometry.num_heads, geometry.head_dim)
        self._query, self._keys, self._values = heads_T3HE.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)
        mixed_TD = state.scratch.mixed_TK[part.first : end, geometry.inner :]
        mixed_THE = mixed_TD.view(part.num_tokens, geometry.num_heads, geometry.head_dim)
        self._out = mixed_THE.transpose(0, 1).unsqueeze(0)
        self._cache = state.cache
        self._part = part

    def run(self, layer: int) -> None:
        """One layer's."""
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


def _causal_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of the last of all positions, [1, heads, positions, head_dim], as fast as PyTorch can."""
    if query.is_cuda and torch.cuda.get_device_capability(query.device) >= (8, 0):
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
