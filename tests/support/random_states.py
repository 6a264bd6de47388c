"""Random models, caches and token batches for tests of the fused engine's kernels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gptj_serve.engine.fused.kernels.protocol import (
    BLOCK_SIZE,
    Cache,
    PromptPart,
    Prompts,
    State,
    Tokens,
    make_rotary,
    make_scratch,
)
from gptj_serve.engine.fused.model import PrefillBatch
from gptj_serve.engine.fused.weights.formats.plain import PlainMatrix
from gptj_serve.engine.fused.weights.pack import Epilogue, Layer, Norm, PackedWeights, Product
from gptj_serve.models.architecture import Architecture, Rotary

MAX_CONTEXT = 2048
MAX_ROWS = 64


def architecture(
    head_dim: int, *, num_heads: int | None = None, rotary_dim: int = 32, **changes: int
) -> Architecture:
    """A small model; by default two layers of 512 numbers with a vocabulary that is no multiple of 16."""
    num_heads = num_heads or 512 // head_dim
    values = {"num_layers": 2, "inner": 1088, "vocab_size": 1003, **changes}
    return Architecture(
        family="gptj",
        head_dim=head_dim,
        num_heads=num_heads,
        width=num_heads * head_dim,
        positions=Rotary(rotary_dim),
        max_positions=MAX_CONTEXT,
        activation="gelu_new",
        epsilon=1e-5,
        tied_head=False,
        **values,
    )


def random_weights(
    of: Architecture, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> PackedWeights:
    """Weights whose activations neither vanish nor explode."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*shape: int, std: float) -> torch.Tensor:
        return torch.empty(shape, device=device, dtype=dtype).normal_(0, std, generator=generator)

    width, inner, vocab = of.width, of.inner, of.vocab_size

    def norm() -> Norm:
        return Norm(1 + noise(width, std=0.1), noise(width, std=0.1))

    def layer() -> Layer:
        project = Product(
            matrix=PlainMatrix(noise(3 * width + inner, width, std=width**-0.5)),
            bias_N=noise(inner, std=0.1),
            first_biased_row=3 * width,
            epilogue=Epilogue.PROJECT,
            first_inner_row=3 * width,
        )
        add = Product(
            matrix=PlainMatrix(noise(width, inner + width, std=inner**-0.5)),
            bias_N=noise(width, std=0.1),
            first_biased_row=0,
            epilogue=Epilogue.ADD,
            norm=norm(),
        )
        return Layer((project, add))

    return PackedWeights(
        embedding_VD=noise(vocab, width, std=1.0),
        first_norm=norm(),
        layers=tuple(layer() for _ in range(of.num_layers)),
        head=PlainMatrix(noise(vocab, width, std=width**-0.5)),
        head_bias_V=noise(vocab, std=0.1),
    )


def random_state(of: Architecture, weights: PackedWeights, num_blocks: int, max_tokens: int = 512) -> State:
    """A state whose cache holds random numbers everywhere."""
    like = weights.embedding_VD
    generator = torch.Generator(like.device).manual_seed(1)
    shape = (of.num_layers, num_blocks, of.num_heads, BLOCK_SIZE, of.head_dim)
    cache = [
        torch.empty(shape, device=like.device, dtype=like.dtype).normal_(generator=generator)
        for _ in range(2)
    ]
    history_SC = torch.randint(
        0, of.vocab_size, (MAX_ROWS + 1, MAX_CONTEXT + 1), generator=generator, device=like.device
    )
    return State(
        architecture=of,
        weights=weights,
        rotary_PR2=make_rotary(of, MAX_CONTEXT).to(like.device),
        cache=Cache(*cache),
        history_SC=history_SC,
        scratch=make_scratch(of, like, max_tokens, MAX_ROWS),
    )


def copy_of(state: State, dtype: torch.dtype | None = None) -> State:
    """The same model and cache in memory of its own, in another type if asked for."""
    like = state.weights.embedding_VD
    copied = random_weights(state.architecture, like.device, dtype or like.dtype)
    for target, source in zip(copied.tensors(), state.weights.tensors(), strict=True):
        target.copy_(source)
    cache = [
        part.to(dtype or like.dtype, copy=True) for part in (state.cache.keys_LNHSE, state.cache.values_LNHSE)
    ]
    max_tokens, max_rows = state.scratch.hidden_TD.shape[0], state.scratch.logits_TV.shape[0]
    return State(
        architecture=state.architecture,
        weights=copied,
        rotary_PR2=state.rotary_PR2,
        cache=Cache(*cache),
        history_SC=state.history_SC.clone(),
        scratch=make_scratch(state.architecture, copied.embedding_VD, max_tokens, max_rows),
    )


@dataclass(frozen=True)
class Batch:
    """Sequences to decode one token of.

    Attributes:
        tokens: As the kernels take them.
        positions: Their positions, -1 for padding.
        tables: Their cache blocks.
    """

    tokens: Tokens
    positions: tuple[int, ...]
    tables: list[list[int]]


def batch(state: State, positions: Sequence[int], seed: int = 0) -> Batch:
    """Sequences at these positions, row by row in its own slot, their blocks all over the cache."""
    device, num_blocks = state.history_SC.device, state.cache.keys_LNHSE.shape[1]
    free = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    tables = [[free.pop() for _ in range(position // BLOCK_SIZE + 1)] for position in positions]
    stride = state.history_SC.shape[1]
    cache_rows = [
        table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE if position >= 0 else 0
        for table, position in zip(tables, positions, strict=True)
    ]
    history_rows = [
        (slot * stride + position) if position >= 0 else MAX_ROWS * stride
        for slot, position in enumerate(positions)
    ]
    width = MAX_CONTEXT // BLOCK_SIZE
    padded = [table + [0] * (width - len(table)) for table in tables]

    def on_device(values: Sequence[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    tokens = Tokens(on_device(positions), on_device(cache_rows), on_device(history_rows), on_device(padded))
    return Batch(tokens, tuple(positions), tables)


def mixed_step(state: State) -> PrefillBatch:
    """Two sequences are decoded, two prompts begin, of 40 and 10 tokens."""
    positions, device = (300, 17, *range(40), *range(10)), state.history_SC.device
    tokens = batch(state, positions).tokens
    last_R = torch.tensor([0, 1, 41, 51], dtype=torch.int32, device=device)
    borders_P = torch.tensor([2, 42, 52], dtype=torch.int32, device=device)
    assert tokens.tables_TW is not None
    return PrefillBatch(
        tokens=tokens.select(slice(None)),
        decoding=replace(tokens.select(slice(2)), tables_TW=tokens.tables_TW[:2]),
        prompts=Prompts(
            parts=(PromptPart(2, 40, 0), PromptPart(42, 10, 0)),
            query_borders_P=borders_P,
            key_borders_P=borders_P,
            key_rows_K=tokens.cache_rows_T,
            all_begin=True,
            max_queries=40,
        ),
        last_R=last_R,
        last=tokens.select(last_R),
    )


def spoil_what_is_not_cached(state: State, of: Batch) -> None:
    """Fill every place of the cache that no sequence has filled with NaN: whoever reads it shows."""
    for part in (state.cache.keys_LNHSE, state.cache.values_LNHSE):
        kept = part.clone()
        part.fill_(float("nan"))
        for table, position in zip(of.tables, of.positions, strict=True):
            for index, block in enumerate(table):
                filled = min(max(position - index * BLOCK_SIZE, 0), BLOCK_SIZE)
                part[:, block, :, :filled] = kept[:, block, :, :filled]


def rms(error: torch.Tensor, truth: torch.Tensor) -> float:
    return float((error - truth).norm() / truth.norm())
