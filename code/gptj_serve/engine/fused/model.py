"""GPT-J's forward passes over the packed weights and the paged cache.

A few tokens to decode go through the kernels' own `decode`; prompts and larger batches go through cuBLAS,
with the kernels doing what lies between the products. Launching from Python takes its time: what is the same
for all layers is worked out once a pass. Shape suffixes as in `kernels`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gptj_serve.engine.fused.kernels.prompt_attention import prompt_attention
from gptj_serve.engine.fused.kernels.protocol import Kernels, Prompts, State, Tokens
from gptj_serve.engine.fused.weights.pack import Epilogue


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Tokens of prompts, and of sequences that are decoded beside them: all share the products.

    Attributes:
        tokens: First one token of each sequence that is decoded, then those of the prompts, with their ids.
        decoding: The former, with their tables; None if there are none.
        prompts: What the latter's attention has to know.
        last_R: int32, indexes of the tokens after which one is chosen; may be empty.
        last: Those tokens.
    """

    tokens: Tokens
    decoding: Tokens | None
    prompts: Prompts
    last_R: torch.Tensor
    last: Tokens


class FusedModel:
    """Runs on one `State`, whose cache, history and scratch it changes. Waits for nothing.

    Args:
        state: The model and its memory.
        kernels: Made for that state.
    """

    def __init__(self, state: State, kernels: Kernels) -> None:
        self._state = state
        self._kernels = kernels

    def decode(self, tokens: Tokens, *, through_cublas: bool = False) -> None:
        """One token of each sequence: logits and chosen tokens go to the scratch memory."""
        if tokens.num_tokens <= self._kernels.max_decode_rows and not through_cublas:
            self._kernels.decode(tokens)
            return
        self._blocks(tokens, None, tokens)
        self._head(self._state.scratch.normed_TD[: tokens.num_tokens], tokens)

    def prefill(self, step: PrefillBatch) -> None:
        """Cache prompts, and decode the sequences beside them.

        Logits and chosen tokens of `PrefillBatch.last` come out as `decode` has them.
        """
        prompts = prompt_attention(self._state, self._kernels, step.prompts, step.tokens.num_tokens)
        self._blocks(step.tokens, prompts, step.decoding)
        if len(step.last_R):
            self._head(self._state.scratch.normed_TD.index_select(0, step.last_R), step.last)

    def _blocks(self, tokens: Tokens, prompts: Callable[[int], None] | None, decoding: Tokens | None) -> None:
        """Embedding, all blocks, the last LayerNorm."""
        scratch, kernels, num = self._state.scratch, self._kernels, tokens.num_tokens
        normed_TD, projected_TP = scratch.normed_TD[:num], scratch.projected_TP[:num]
        mixed_TK, added_TD = scratch.mixed_TK[:num], scratch.added_TD[:num]
        kernels.embed(tokens)
        for index, layer in enumerate(self._state.weights.layers):
            for place, product in enumerate(layer.products):
                if product.epilogue == Epilogue.ADD:
                    product.matrix.multiply(mixed_TK, added_TD)
                    kernels.add(num, index, place)
                    continue
                product.matrix.multiply(normed_TD, projected_TP)
                kernels.finish_projection(tokens, index, place)
                if prompts is not None:
                    prompts(index)
                if decoding is not None:
                    kernels.attend(decoding, index)

    def _head(self, normed_TD: torch.Tensor, tokens: Tokens) -> None:
        logits_TV = self._state.scratch.logits_TV[: tokens.num_tokens]
        # float32 logits: in float16, near ones would become equal
        self._state.weights.head.multiply(normed_TD, logits_TV)
        self._kernels.choose(tokens)
