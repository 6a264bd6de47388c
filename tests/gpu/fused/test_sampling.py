"""Sampling on a GPU: it never makes the host wait, and chooses what it chooses on a CPU."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from gptj_serve.engine.sampling.results import Choice
from gptj_serve.engine.sampling.sampler import Sampler, SamplerRow, warm_up
from support.sampling_rows import EVERYTHING, Sampling, choose, comparable, history_of, sample, sequence

pytestmark = pytest.mark.gpu

VOCAB = 50400
NUM_SLOTS = 64
MAX_CONTEXT = 2048


@contextmanager
def forbid_waiting() -> Iterator[None]:
    """Every operation that torch knows to synchronise raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "a prototype feature"
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def _warm() -> None:
    warm_up(torch.device("cuda", 0), torch.float16, NUM_SLOTS, VOCAB)


def sequences_of(num: int, **sampling: Any) -> list[Sampling]:
    return [
        sequence((1, 2, 3, 4), (5,) * (seed % 7), logprobs=True, num_top_logprobs=3, seed=seed, **sampling)
        for seed in range(num)
    ]


def mixed_sequences(num: int) -> list[Sampling]:
    """Every filter and log-probabilities, on some rows and not on others."""
    ways = [
        {},
        {"do_sample": True},
        {**EVERYTHING, "logprobs": True, "num_top_logprobs": 20},
        {"repetition_penalty": 1.3, "min_new_tokens": 9, "logprobs": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 50},
        {"do_sample": True, "top_p": 0.9, "logit_bias": ((7, 3.0), (50399, -4.0))},
        {"frequency_penalty": 0.4},
        {"do_sample": True, "typical_p": 0.9},
        {"do_sample": True, "min_p": 0.1, "no_repeat_ngram_size": 3},
        {"bad_words_ids": ((6, 6, 7), (8,)), "bad_words": ((6, 9), (50399,))},
        {"suppress_tokens": (1, 2), "begin_suppress_tokens": (3,), "no_repeat_ngram_size": 1},
    ]
    return [
        sequence((9, 8, 7), (6,) * (seed % 5), **{**ways[seed % len(ways)], "seed": seed})
        for seed in range(num)
    ]


def fp16_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    """GPT-J's width in FP16: full of ties."""
    return (3 * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))).half()


def device_rows(sequences: Sequence[Sampling]) -> list[SamplerRow]:
    return [one.row(slot) for slot, one in enumerate(sequences)]


def history_on_gpu(sequences: Sequence[Sampling], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return history_of(sequences, range(len(sequences)), NUM_SLOTS, MAX_CONTEXT, dtype).cuda()


@pytest.mark.usefixtures("_warm")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("num_rows", [1, 8, NUM_SLOTS])
def test_choosing_synchronises_nothing(num_rows: int, dtype: torch.dtype) -> None:
    sequences = mixed_sequences(num_rows)
    logits_BV = fp16_logits(num_rows).cuda()
    sampler = Sampler(history_on_gpu(sequences, dtype), VOCAB)
    torch.cuda.synchronize()
    with forbid_waiting():
        choices = [sampler.choose(logits_BV, device_rows(sequences))]
        # each way alone in its batch: no row is picked out of others
        choices += [sampler.choose(logits_BV[:1], device_rows([one])) for one in mixed_sequences(8)]
    assert all(result.error is None for choice in choices for result in choice.results())


def test_the_debug_mode_sees_what_waits() -> None:
    on_gpu = torch.ones(2, device="cuda")
    with forbid_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        on_gpu.sum().item()


@pytest.mark.usefixtures("_warm")
def test_the_host_is_done_long_before_the_device() -> None:
    """The debug mode does not know all that waits; a device that is busy for long shows the rest."""
    sequences = mixed_sequences(NUM_SLOTS)
    logits_BV = fp16_logits(NUM_SLOTS).cuda()
    sampler = Sampler(history_on_gpu(sequences), VOCAB)
    launch(sampler, logits_BV, sequences, 0).results()
    busy = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # about a second
    busy.record()
    started_s = time.perf_counter()
    choices = [launch(sampler, logits_BV, sequences, step) for step in range(1, 4)]
    host_s = time.perf_counter() - started_s
    assert not busy.query()
    assert host_s < 0.3
    assert all(result.error is None for choice in choices for result in choice.results())


def launch(sampler: Sampler, logits_BV: torch.Tensor, sequences: Sequence[Sampling], step: int) -> Choice:
    rows = [replace(row, end=row.end + step) for row in device_rows(sequences)]
    return sampler.choose(logits_BV, rows)


def test_steps_launched_ahead_choose_what_steps_one_by_one_choose() -> None:
    """Page-locked and device buffers are used again while earlier steps still run."""
    sequences = mixed_sequences(NUM_SLOTS)
    steps_BV = [fp16_logits(NUM_SLOTS, seed).cuda() for seed in range(6)]
    one_by_one_SC, ahead_SC = history_on_gpu(sequences), history_on_gpu(sequences)
    sampler = Sampler(one_by_one_SC, VOCAB)
    expected = [
        comparable(launch(sampler, logits_BV, sequences, step).results())
        for step, logits_BV in enumerate(steps_BV)
    ]
    sampler = Sampler(ahead_SC, VOCAB)
    torch.cuda._sleep(500_000_000)
    choices = [launch(sampler, logits_BV, sequences, step) for step, logits_BV in enumerate(steps_BV)]
    assert [comparable(choice.results()) for choice in choices] == expected
    assert torch.equal(one_by_one_SC, ahead_SC)
    for slot, one in enumerate(sequences):
        tokens = [step[slot][0] for step in expected]
        assert ahead_SC[slot, len(one.ids) :][: len(tokens)].tolist() == tokens


def agreement(**sampling: Any) -> float:
    """Share of rows for which a GPU and a CPU choose the same."""
    sequences = sequences_of(NUM_SLOTS, **sampling)
    logits_BV = fp16_logits(NUM_SLOTS)
    slots = range(NUM_SLOTS)
    on_cpu = choose(logits_BV, sequences, history_of(sequences, slots, NUM_SLOTS, MAX_CONTEXT), slots)
    on_gpu = choose(logits_BV.cuda(), sequences, history_on_gpu(sequences), slots)
    same = [(a, b) for a, b in zip(on_cpu, on_gpu, strict=True) if a.token_id == b.token_id]
    for a, b in same:
        assert b.logprob == pytest.approx(a.logprob, abs=1e-4)
        values = [value for _, value in a.top_logprobs]
        assert [value for _, value in b.top_logprobs] == pytest.approx(values, abs=1e-4)
    return len(same) / NUM_SLOTS


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"repetition_penalty": 1.3, "min_new_tokens": 9},
        {"presence_penalty": 0.7, "frequency_penalty": 0.3, "logit_bias": ((11, 20.0), (5, 18.0))},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 50},
        {"do_sample": True, "min_p": 0.05},
    ],
)
def test_a_gpu_chooses_as_a_cpu(sampling: dict[str, Any]) -> None:
    assert agreement(**sampling) == 1.0


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"typical_p": 0.9, "temperature": 1.3}])
def test_filters_by_mass_choose_nearly_as_on_a_cpu(sampling: dict[str, Any]) -> None:
    """Their float32 sums over the vocabulary round differently: a token more or less may stay."""
    assert agreement(do_sample=True, **sampling) >= 0.9


LIKELY = torch.tensor([5, 6, 7, 8, 50399])
FORBIDDING: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 100},
    {"bad_words_ids": ((6,), (5, 5, 7), (5, 6, 8)), "bad_words": ((5, 8), (5, 5, 50399))},
    {"bad_words": ((4, 5), (3, 4, 6), (5, 5, 5, 5, 7))},
    {"suppress_tokens": (6, 50399), "begin_suppress_tokens": (7, 8)},
    {"do_sample": True, "no_repeat_ngram_size": 2, "bad_words_ids": ((5, 6),), "min_p": 0.2},
]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_what_is_forbidden_on_a_gpu_is_what_is_forbidden_on_a_cpu(dtype: torch.dtype) -> None:
    """Few tokens are likely at all, so what is forbidden decides; every way beside every other."""
    sequences = [
        sequence(
            (1, 2, 3, 4)[: 1 + seed % 4], (5, 6, 5, 5)[: seed // 8 % 5], seed=seed, **FORBIDDING[seed % 8]
        )
        for seed in range(NUM_SLOTS)
    ]
    logits_BV = fp16_logits(NUM_SLOTS)
    logits_BV[:, LIKELY] = (
        20 + torch.rand(NUM_SLOTS, len(LIKELY), generator=torch.Generator().manual_seed(1)).half()
    )
    on_cpu = sample(logits_BV, sequences)
    on_gpu = choose(logits_BV.cuda(), sequences, history_on_gpu(sequences, dtype), range(NUM_SLOTS))
    assert comparable(on_gpu) == comparable(on_cpu)
    assert len({one.token_id for one in on_gpu}) > 3


def test_a_broken_row_fails_alone() -> None:
    sequences = mixed_sequences(NUM_SLOTS)
    logits_BV = fp16_logits(NUM_SLOTS).cuda()
    healthy = comparable(choose(logits_BV, sequences, history_on_gpu(sequences), range(NUM_SLOTS)))
    for b, bad in ((0, float("nan")), (2, float("inf")), (13, float("nan"))):
        logits_BV[b, 40_000] = bad
    history_SC = history_on_gpu(sequences)
    results = choose(logits_BV, sequences, history_SC, range(NUM_SLOTS))
    assert [b for b, one in enumerate(results) if one.error is not None] == [0, 2, 13]
    assert [one for b, one in enumerate(comparable(results)) if b not in (0, 2, 13)] == [
        one for b, one in enumerate(healthy) if b not in (0, 2, 13)
    ]
    # the next step looks up what a failed row appended
    assert 0 <= int(history_SC.min()) <= int(history_SC.max()) < VOCAB


def test_greedy_ties_take_the_lowest_id() -> None:
    logits_BV = torch.zeros(4, VOCAB, device="cuda", dtype=torch.float16)
    logits_BV[:, [40_000, 1_300, 29_000]] = 5.0
    sequences = [sequence(), sequence(repetition_penalty=1.2)] * 2
    results = choose(logits_BV, sequences, history_on_gpu(sequences), range(4))
    assert [result.token_id for result in results] == [1_300] * 4


def test_memory_is_bounded() -> None:
    """What the module says: 260 MB for 64 rows, here with every filter and the longest histories."""
    sequences = [
        sequence((1,) * 1000, (2,) * 1000, **EVERYTHING, logprobs=True, num_top_logprobs=20)
        for _ in range(NUM_SLOTS)
    ]
    logits_BV = fp16_logits(NUM_SLOTS).cuda()
    sampler = Sampler(history_on_gpu(sequences), VOCAB)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    launch(sampler, logits_BV, sequences, 0).results()
    assert torch.cuda.max_memory_allocated() - before < 260e6
