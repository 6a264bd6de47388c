"""GPT-J's forward passes over the packed weights and the paged cache.

A few tokens to decode go through the kernels' own `decode`; prompts and larger batches go through cuBLAS, with the
kernels doing what lies between the products. Shape suffixes as in `kernels`; P rows of the in-projection.
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

    def decode(self, tokens: Tokens) -> None:
        """One token of each sequence: logits and chosen tokens are in the scratch memory, the latter in the history."""
        if tokens.num_tokens <= self._kernels.max_decode_rows:
            self._kernels.decode(tokens)
            return
        self._kernels.embed(tokens)
        for layer in range(self._state.geometry.num_layers):
            projected_TP = self._project_in(tokens, layer)
            self._kernels.attend(projected_TP, tokens, layer)
            self._project_out(tokens.num_tokens, layer)
        self._head(self._state.scratch.normed_TD[: tokens.num_tokens], tokens)

    def prefill(self, tokens: Tokens, parts: Sequence[PromptPart], last_R: torch.Tensor, last: Tokens) -> None:
        """Tokens of prompts, whose ids are in the history: they are cached, and some choose a token.

        Args:
            tokens: All of them, sequence by sequence.
            parts: The sequences.
            last_R: int64, indexes of the tokens after which one is chosen; may be empty.
            last: Those tokens. Their logits and chosen tokens come out as `decode` has them.
        """
        self._kernels.embed(tokens)
        for layer in range(self._state.geometry.num_layers):
            projected_TP = self._project_in(tokens, layer)
            for part in parts:
                self._attend_prompt(projected_TP, part, layer)
            self._project_out(tokens.num_tokens, layer)
        if len(last_R):
            self._head(self._state.scratch.normed_TD.index_select(0, last_R), last)

    def _project_in(self, tokens: Tokens, layer: int) -> torch.Tensor:
        normed_TD = self._state.scratch.normed_TD[: tokens.num_tokens]
        projected_TP = F.linear(normed_TD, self._state.weights.in_weight_LND[layer])
        self._kernels.finish_in(projected_TP, tokens, layer)
        return projected_TP

    def _project_out(self, num_tokens: int, layer: int) -> None:
        mixed_TK = self._state.scratch.mixed_TK[:num_tokens]
        self._kernels.add_and_normalise(F.linear(mixed_TK, self._state.weights.out_weight_LDK[layer]), layer)

    def _attend_prompt(self, projected_TP: torch.Tensor, part: PromptPart, layer: int) -> None:
        geometry, end = self._state.geometry, part.first + part.num_tokens
        heads = projected_TP[part.first : end, : 3 * geometry.width].unflatten(1, (3, geometry.num_heads, -1))
        query_HTE, keys_HPE, values_HPE = heads.permute(1, 2, 0, 3).unbind(0)
        if part.blocks_N is not None:
            keys_HPE, values_HPE = self._cached(part, layer)
        attention_HTE = _causal_attention(query_HTE, keys_HPE, values_HPE)
        mixed_THE = self._state.scratch.mixed_TK[part.first : end, geometry.inner :]
        mixed_THE.unflatten(1, (geometry.num_heads, -1)).copy_(attention_HTE.transpose(0, 1))

    def _cached(self, part: PromptPart, layer: int) -> list[torch.Tensor]:
        cache, end = self._state.cache, part.start + part.num_tokens
        assert part.blocks_N is not None
        return [
            kind_LNHSE[layer].index_select(0, part.blocks_N).transpose(0, 1).flatten(1, 2)[:, :end]
            for kind_LNHSE in (cache.keys_LNHSE, cache.values_LNHSE)
        ]

    def _head(self, normed_TD: torch.Tensor, tokens: Tokens) -> None:
        weight_DV = self._state.weights.head_weight_VD.T
        logits_TV = self._state.scratch.logits_TV[: tokens.num_tokens]
        # float32 logits: in float16, near ones would become equal
        if normed_TD.dtype == torch.float32:
            torch.mm(normed_TD, weight_DV, out=logits_TV)
        else:
            torch.mm(normed_TD, weight_DV, out_dtype=torch.float32, out=logits_TV)
        self._kernels.choose(tokens)


def _causal_attention(
    query_HTE: torch.Tensor, keys_HPE: torch.Tensor, values_HPE: torch.Tensor
) -> torch.Tensor:
    """Attention of the last T of P positions; the best that PyTorch has for the device."""
    query, keys, values = (heads.unsqueeze(0) for heads in (query_HTE, keys_HPE, values_HPE))
    num_queries, num_keys = query.shape[2], keys.shape[2]
    if num_queries == num_keys:
        attention = F.scaled_dot_product_attention(query, keys, values, is_causal=True)
    elif query.is_cuda and torch.cuda.get_device_capability(query.device) >= (8, 0):
        # what `torch.nn.attention.bias.causal_lower_right` calls; importing that takes two seconds
        attention = torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values, 0.0, True)[0]
    else:
        mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
        mask = mask.tril(num_keys - num_queries)
        attention = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return attention.squeeze(0)
