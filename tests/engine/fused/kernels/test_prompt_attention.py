"""Attention of prompts against the formula, position by position."""

import pytest
import torch

from gptj_serve.engine.fused.kernels.plain import PlainKernels
from gptj_serve.engine.fused.kernels.prompt_attention import prompt_attention
from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE, PromptPart, Prompts, State
from support.random_states import architecture, random_state, random_weights

CPU = torch.device("cpu")


@pytest.fixture
def state() -> State:
    of = architecture(64)
    made = random_state(of, random_weights(of, CPU, torch.float32), num_blocks=40)
    made.scratch.projected_TP.normal_(generator=torch.Generator().manual_seed(2))
    made.scratch.mixed_TK.zero_()
    return made


def by_the_formula(state: State, layer: int, part: PromptPart, rows: list[int]) -> torch.Tensor:
    """Each token looks at the cache up to its own position; the cache has the part's tokens already."""
    of, found = state.architecture, []
    for number in range(part.num_tokens):
        query_HE = state.scratch.projected_TP[part.first + number, : of.width].view(of.num_heads, of.head_dim)
        places = [divmod(row, BLOCK_SIZE) for row in rows[: part.start + number + 1]]
        keys_THE, values_THE = (
            torch.stack([kind_LNHSE[layer, block, :, slot] for block, slot in places])
            for kind_LNHSE in (state.cache.keys_LNHSE, state.cache.values_LNHSE)
        )
        scores_HT = torch.einsum("he,the->ht", query_HE, keys_THE) / of.head_dim**0.5
        found.append(torch.einsum("ht,the->he", scores_HT.softmax(-1), values_THE).flatten())
    return torch.stack(found)


def test_chunks_of_two_sequences_in_one_step(state: State) -> None:
    """Their blocks lie anywhere, and what one gathers must not reach the other."""
    blocks = torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist()
    parts = (PromptPart(0, 21, 37), PromptPart(21, 5, 16))
    rows = [
        [of[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE for position in range(part.end)]
        for of, part in zip((blocks[:4], blocks[4:6]), parts, strict=True)
    ]
    prompts = Prompts(
        parts=parts,
        query_borders_P=torch.tensor([0, 21, 26], dtype=torch.int32),
        key_borders_P=torch.tensor([0, 58, 79], dtype=torch.int32),
        key_rows_K=torch.tensor([*rows[0], *rows[1], -1], dtype=torch.int32),  # the last is padding
        all_begin=False,
        max_queries=21,
    )
    attention = prompt_attention(state, PlainKernels(state), prompts, 26)
    for layer in range(state.architecture.num_layers):
        attention(layer)
        mixed_TD = state.scratch.mixed_TK[:26, state.architecture.inner :]
        expected = [by_the_formula(state, layer, *of) for of in zip(parts, rows, strict=True)]
        torch.testing.assert_close(mixed_TD, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert not state.scratch.mixed_TK[26:].any()
    assert not state.scratch.mixed_TK[:, : state.architecture.inner].any()
