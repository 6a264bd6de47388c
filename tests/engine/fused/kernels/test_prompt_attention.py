"""Attention of prompts against the formula, position by position."""

import pytest
import torch

from gptj_serve.engine.fused.kernels.prompt_attention import PromptPart, prompt_attentions
from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, State
from support.random_states import architecture, random_state, random_weights

CPU = torch.device("cpu")


@pytest.fixture
def state() -> State:
    of = architecture(64)
    made = random_state(of, random_weights(of, CPU, torch.float32), num_blocks=40)
    made.scratch.projected_TP.normal_(generator=torch.Generator().manual_seed(2))
    made.scratch.mixed_TK.zero_()
    return made


def by_the_formula(state: State, layer: int, part: PromptPart) -> torch.Tensor:
    """Each token looks at the cache up to its own position; the cache has the part's tokens already."""
    of, found = state.architecture, []
    assert part.blocks_N is not None
    for number in range(part.num_tokens):
        position = part.start + number
        query_HE = state.scratch.projected_TP[part.first + number, : of.width].view(of.num_heads, of.head_dim)
        places = [(part.blocks_N[p // BLOCK_SIZE], p % BLOCK_SIZE) for p in range(position + 1)]
        keys_THE, values_THE = (
            torch.stack([kind_LNHSE[layer, block, :, slot] for block, slot in places])
            for kind_LNHSE in (state.cache.keys_LNHSE, state.cache.values_LNHSE)
        )
        scores_HT = torch.einsum("he,the->ht", query_HE, keys_THE) / of.head_dim**0.5
        found.append(torch.einsum("ht,the->he", scores_HT.softmax(-1), values_THE).flatten())
    return torch.stack(found)


def test_chunks_of_two_sequences_in_one_step(state: State) -> None:
    """Their blocks lie anywhere, and what one gathers must not reach the other."""
    blocks = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    parts = [PromptPart(0, 21, 37, blocks[:4]), PromptPart(21, 5, 16, blocks[4:6])]
    attentions = prompt_attentions(state, parts, torch.tensor([0, 21, 26], dtype=torch.int32))
    for layer in range(state.architecture.num_layers):
        for attention in attentions:
            attention.run(layer)
        mixed_TD = state.scratch.mixed_TK[:26, state.architecture.inner :]
        expected_TD = torch.cat([by_the_formula(state, layer, part) for part in parts])
        torch.testing.assert_close(mixed_TD, expected_TD, rtol=1e-4, atol=1e-5)
    assert not state.scratch.mixed_TK[26:].any()
    assert not state.scratch.mixed_TK[:, : state.architecture.inner].any()
