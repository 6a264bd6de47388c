"""The kernels' counterpart in plain PyTorch: it gives the same results on any device and describes them.

It has no `decode`, so every batch takes the cuBLAS path, and it leaves the attention of prompts to PyTorch.
Shape suffixes are those of `kernels`.
"""

import torch
import torch.nn.functional as F

from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, Prompts, State, Tokens
from gptj_serve.engine.fused.weights.pack import Norm


class PlainKernels:
    """Meets `gptj_serve.engine.fused.kernels.protocol.Kernels`.

    Args:
        state: What they work on.
    """

    max_decode_rows = 0
    can_attend_prompts = False

    def __init__(self, state: State) -> None:
        self._state = state

    def decode(self, tokens: Tokens) -> None:
        """There is none."""
        raise NotImplementedError

    def embed(self, tokens: Tokens) -> None:
        """See `Kernels.embed`."""
        history_T = self._state.history_SC.view(-1)
        if tokens.ids_T is not None:
            is_known_T = tokens.ids_T >= 0
            history_T[tokens.history_rows_T[is_known_T].long()] = tokens.ids_T[is_known_T].long()
        ids_T = history_T[tokens.history_rows_T.long()]
        hidden_TD = self._state.weights.embedding_VD[ids_T].float()
        self._state.scratch.hidden_TD[: tokens.num_tokens] = hidden_TD
        self._normalise(tokens.num_tokens, self._state.weights.first_norm)

    def finish_projection(self, tokens: Tokens, layer: int, product: int) -> None:
        """See `Kernels.finish_projection`."""
        of = self._state.weights.layers[layer].products[product]
        architecture, cache = self._state.architecture, self._state.cache
        projected_TP = self._state.scratch.projected_TP[: tokens.num_tokens]
        biased_TP = projected_TP.float()
        biased_TP[:, of.first_biased_row :] += of.bias_N.float()
        mixed_TF = F.gelu(biased_TP[:, of.first_inner_row :], approximate="tanh").to(projected_TP.dtype)
        self._state.scratch.mixed_TK[: tokens.num_tokens, : architecture.inner] = mixed_TF
        projected_TP[:, : of.first_inner_row] = biased_TP[:, : of.first_inner_row]
        is_real_T = tokens.positions_T >= 0
        positions_T = tokens.positions_T[is_real_T].long()
        heads_TX = projected_TP[:, : of.first_inner_row]
        heads = heads_TX.view(-1, 3, architecture.num_heads, architecture.head_dim)
        for section in (0, 1):
            part_THR = heads[:, section, :, : architecture.positions.dim]
            part_THR[is_real_T] = self._rotate(part_THR[is_real_T], positions_T)
        rows_T = tokens.cache_rows_T[is_real_T].long()
        block_T, offset_T = rows_T // BLOCK_SIZE, rows_T % BLOCK_SIZE
        cache.keys_LNHSE[layer][block_T, :, offset_T] = heads[is_real_T, 1]
        cache.values_LNHSE[layer][block_T, :, offset_T] = heads[is_real_T, 2]

    def attend_prompts(self, prompts: Prompts, num_tokens: int, layer: int) -> None:
        """There is none."""
        raise NotImplementedError

    def attend(self, tokens: Tokens, layer: int) -> None:
        """See `Kernels.attend`."""
        architecture, cache = self._state.architecture, self._state.cache
        assert tokens.tables_TW is not None
        for token, position in enumerate(tokens.positions_T.tolist()):
            if position < 0:
                continue
            blocks = tokens.tables_TW[token, : position // BLOCK_SIZE + 1].long()
            keys_HPE, values_HPE = (
                part[layer][blocks].transpose(0, 1).flatten(1, 2)[:, : position + 1].float()
                for part in (cache.keys_LNHSE, cache.values_LNHSE)
            )
            query_HE = (
                self._state.scratch.projected_TP[token, : architecture.attention_width]
                .view(architecture.num_heads, -1)
                .float()
            )
            scores_HP = torch.einsum("he,hpe->hp", query_HE, keys_HPE) / architecture.head_dim**0.5
            attention_HE = torch.einsum("hp,hpe->he", scores_HP.softmax(dim=-1), values_HPE)
            self._state.scratch.mixed_TK[token, architecture.inner :] = attention_HE.flatten()

    def add(self, num_tokens: int, layer: int, product: int) -> None:
        """See `Kernels.add`."""
        of = self._state.weights.layers[layer].products[product]
        assert of.norm is not None
        added_TD = self._state.scratch.added_TD[:num_tokens].float()
        added_TD[:, of.first_biased_row :] += of.bias_N.float()
        self._state.scratch.hidden_TD[:num_tokens] += added_TD
        self._normalise(num_tokens, of.norm)

    def choose(self, tokens: Tokens) -> None:
        """See `Kernels.choose`."""
        scratch, num_tokens = self._state.scratch, tokens.num_tokens
        logits_TV = scratch.logits_TV[:num_tokens]
        logits_TV += self._state.weights.head_bias_V.float()
        ids_T1 = logits_TV.argmax(dim=-1, keepdim=True)
        scratch.chosen_2T[0, :num_tokens] = ids_T1[:, 0]
        scratch.chosen_2T[1].view(torch.float32)[:num_tokens] = logits_TV.gather(1, ids_T1)[:, 0]
        is_real_T = tokens.positions_T >= 0
        places_T = tokens.history_rows_T[is_real_T].long() + 1
        self._state.history_SC.view(-1)[places_T] = ids_T1[is_real_T, 0]

    def _normalise(self, num_tokens: int, norm: Norm) -> None:
        scratch = self._state.scratch
        scratch.normed_TD[:num_tokens] = F.layer_norm(
            scratch.hidden_TD[:num_tokens],
            (self._state.architecture.width,),
            norm.weight_D.float(),
            norm.bias_D.float(),
            self._state.architecture.epsilon,
        ).to(scratch.normed_TD.dtype)

    def _rotate(self, part_THR: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        cos_T1Q, sin_T1Q = self._state.rotary_PR2[positions_T].unsqueeze(1).unbind(-1)
        even_THQ, odd_THQ = part_THR[..., 0::2].float(), part_THR[..., 1::2].float()
        rotated = (even_THQ * cos_T1Q - odd_THQ * sin_T1Q, odd_THQ * cos_T1Q + even_THQ * sin_T1Q)
        return torch.stack(rotated, dim=-1).flatten(-2).to(part_THR.dtype)
