"""Rows side by side choose as alone, and the host never has to wait for the device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gptj_serve.engine.failures import BackendDead
from gptj_serve.engine.sampling import results, score_filters, score_plan
from gptj_serve.engine.sampling.sampler import Sampler, warm_up
from support.sampling_rows import (
    EVERYTHING,
    STALE_ID,
    Sampling,
    choose,
    comparable,
    history_of,
    sample,
    sequence,
)

VOCAB = 40
NUM_SLOTS = 6
MAX_CONTEXT = 24


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


TOKEN_IDS = st.integers(0, VOCAB - 1)
FEW_IDS = st.integers(8, 10) | st.integers(0, VOCAB + 1)
"""Often the same ones, so that something is said twice."""
WORDS = st.lists(FEW_IDS, min_size=1, max_size=4).map(tuple)
SAMPLINGS = st.fixed_dictionaries(
    {
        "min_new_tokens": st.sampled_from([0, 0, 3, 8]),
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([1.0, 0.1, 0.7, 1.9, 1e-42]),
        "top_k": st.sampled_from([0, 0, 1, 5, VOCAB - 1, VOCAB, 1000]),
        "top_p": st.sampled_from([1.0, 1.0, 0.05, 0.5, 0.9]),
        "typical_p": st.sampled_from([1.0, 1.0, 0.1, 0.9]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3, 0.6]),
        "presence_penalty": st.sampled_from([0.0, 0.0, 0.7, -1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, 0.31, -0.7]),
        "logit_bias": st.lists(
            st.tuples(st.integers(0, VOCAB + 3), st.floats(-100, 100, width=32)), max_size=4
        ).map(tuple),
        "min_p": st.sampled_from([0.0, 0.0, 0.05, 1.0]),
        "no_repeat_ngram_size": st.sampled_from([0, 0, 1, 2, 3, 9]),
        "bad_words_ids": st.lists(WORDS, max_size=3).map(tuple),
        "bad_words": st.lists(WORDS, max_size=3).map(tuple),
        "suppress_tokens": st.lists(st.integers(0, VOCAB + 3), max_size=3).map(tuple),
        "begin_suppress_tokens": st.lists(st.integers(0, VOCAB + 3), max_size=3).map(tuple),
        "seed": st.integers(0, 2**64 - 1),
        "sequence_index": st.integers(0, 3),
    }
)
SEQUENCES = st.builds(
    lambda sampling, **others: sequence(**sampling, **others),
    SAMPLINGS,
    prompt_ids=st.lists(st.integers(8, 10) | TOKEN_IDS, min_size=1, max_size=12),
    generated_ids=st.lists(st.integers(8, 10) | TOKEN_IDS, max_size=10),
    eos_token_ids=st.lists(st.integers(-2, VOCAB + 3), max_size=3).map(tuple),
    logprobs=st.booleans(),
    num_top_logprobs=st.sampled_from([0, 0, 3, VOCAB + 5]),
)
BAD_LOGITS = st.lists(
    st.tuples(
        st.integers(0, NUM_SLOTS - 1), TOKEN_IDS, st.sampled_from([float("nan"), float("inf"), -float("inf")])
    ),
    max_size=2,
)


@settings(max_examples=100)
@given(
    sequences=st.lists(SEQUENCES, max_size=NUM_SLOTS),
    slots=st.permutations(range(NUM_SLOTS)),
    types=st.tuples(
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
        st.sampled_from([torch.int64, torch.int32]),
    ),
    bad=BAD_LOGITS,
    seed=st.integers(0, 2**32),
)
def test_a_row_chooses_what_it_chooses_alone(
    sequences: list[Sampling],
    slots: list[int],
    types: tuple[torch.dtype, torch.dtype],
    bad: list[tuple[int, int, float]],
    seed: int,
) -> None:
    """Any parameters side by side, in any slots of any history; 16-bit logits have many ties.

    What each chooses is compared with Transformers in the file of that name.
    """
    slots = slots[: len(sequences)]
    logits_BV = random_logits(len(sequences), seed).to(types[0])
    for b, token_id, value in bad:
        if b < len(sequences):
            logits_BV[b, token_id] = value
    before_BV = logits_BV.clone()
    history_SC = history_of(sequences, slots, NUM_SLOTS, MAX_CONTEXT, types[1])
    expected_SC = history_SC.clone()
    expected = sample(logits_BV, sequences)
    alone = [sample(logits_BV[b : b + 1], [one])[0] for b, one in enumerate(sequences)]

    found = choose(logits_BV, sequences, history_SC, slots)

    assert comparable(found) == comparable(expected)
    # which of several equally likely tokens are told beside it depends on how many the neighbours want
    assert [one[:3] for one in comparable(alone)] == [one[:3] for one in comparable(found)]
    for one, slot, result in zip(sequences, slots, found, strict=True):
        place = (slot, len(one.ids))
        # what a failed row appends is looked up by the next step all the same
        assert 0 <= history_SC[place] < VOCAB
        expected_SC[place] = history_SC[place] if result.error else result.token_id
    assert torch.equal(history_SC, expected_SC)
    torch.testing.assert_close(logits_BV, before_BV, rtol=0, atol=0, equal_nan=True)


def random_logits(num_rows: int, seed: int, vocab: int = VOCAB) -> torch.Tensor:
    return 4 * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("one", "chosen"),
    [
        (sequence((10,), (11,), repetition_penalty=2.0), 12),
        (sequence((10,), (11,), presence_penalty=2.0), 10),
        (sequence((12,), (10, 11, 11), presence_penalty=0.5, frequency_penalty=0.6), 10),
        (sequence((12,), (10, 11, 11), frequency_penalty=1.9), 12),
        (sequence((12,), logit_bias=((11, 1.5),)), 11),
        (sequence((12,), (1,), min_new_tokens=2, eos_token_ids=(10, 11)), 12),
        (sequence((12,), (1, 1), min_new_tokens=2, eos_token_ids=(10, 11)), 10),
        (sequence((1, 10), (1,), no_repeat_ngram_size=2), 11),
        (sequence((1, 1, 10), (1,), no_repeat_ngram_size=3), 10),
        (sequence((5, 1), (), bad_words_ids=((1, 10),)), 11),
        (sequence((5, 1), (), bad_words=((1, 10),)), 10),
        (sequence((5,), (1, 2), bad_words=((1, 2, 10), (11,))), 12),
        (sequence((5,), (), begin_suppress_tokens=(10,), suppress_tokens=(11,)), 12),
        (sequence((5,), (1,), begin_suppress_tokens=(10,)), 10),
    ],
)
def test_each_setting_counts_what_it_should(one: Sampling, chosen: int) -> None:
    """By hand, for the comparison above cannot see what is always wrong."""
    logits_BV = torch.zeros(1, VOCAB)
    logits_BV[0, [10, 11, 12]] = torch.tensor([4.0, 3.0, 2.5])
    history_SC = history_of([one], [2], NUM_SLOTS, MAX_CONTEXT)
    assert [result.token_id for result in choose(logits_BV, [one], history_SC, [2])] == [chosen]


def test_what_earlier_sequences_left_in_a_slot_does_not_count() -> None:
    """Stale ids lie behind the sequence's end, and its prompt counts for the repetition penalty alone."""
    logits_BV = torch.zeros(2, VOCAB)
    logits_BV[:, STALE_ID] = 1.0
    sequences = [sequence((5,), (), repetition_penalty=9.0), sequence((5,), (6,), presence_penalty=2.0)]
    history_SC = history_of(sequences, [0, 1], NUM_SLOTS, MAX_CONTEXT)
    results = choose(logits_BV, sequences, history_SC, [0, 1])
    assert [result.token_id for result in results] == [STALE_ID] * 2


def test_steps_feed_each_other_on_the_device() -> None:
    """Results are read when all steps were launched; beside it, they are known one by one."""
    sequences = [
        sequence((4, 5), repetition_penalty=1.5, frequency_penalty=0.5, logprobs=True),
        sequence((6,), do_sample=True, temperature=1.5, presence_penalty=1.0, seed=3),
        sequence((7, 8, 9)),
    ]
    slots = [3, 0, 5]
    history_SC = history_of(sequences, slots, NUM_SLOTS, MAX_CONTEXT)
    sampler = Sampler(history_SC, VOCAB)
    steps_BV = [random_logits(3, seed) for seed in range(8)]
    rows = [one.row(slot) for one, slot in zip(sequences, slots, strict=True)]
    choices = []
    for step, logits_BV in enumerate(steps_BV):
        moved = [replace(row, end=row.end + step) for row in rows]
        choices.append(sampler.choose(logits_BV, moved))

    generated: list[list[int]] = [[], [], []]
    for choice, logits_BV in zip(choices, steps_BV, strict=True):
        known = [Sampling(one.request, tuple(ids)) for one, ids in zip(sequences, generated, strict=True)]
        results = choice.results()
        assert comparable(results) == comparable(sample(logits_BV, known))
        for ids, result in zip(generated, results, strict=True):
            ids.append(result.token_id)


def test_a_slots_next_sequence_has_its_own_parameters() -> None:
    logits_BV = torch.zeros(1, VOCAB)
    logits_BV[0, [10, 11]] = torch.tensor([4.0, 3.0])
    sampler = Sampler(history_of([], [], NUM_SLOTS, MAX_CONTEXT), VOCAB)
    chosen = []
    for one in (
        sequence((5,), logit_bias=((10, -50.0),)),
        sequence((5,)),
        sequence((5,), logit_bias=((9, 50.0),)),
    ):
        choice = sampler.choose(logits_BV, [one.row(1)])
        chosen += [result.token_id for result in choice.results()]
    assert chosen == [11, 10, 9]


def test_the_draw_depends_on_seed_sequence_and_count_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    uniform_at = score_plan.uniform_at
    monkeypatch.setattr(
        score_plan,
        "uniform_at",
        lambda state, position: drawn.append(position) or uniform_at(state, position),
    )
    one = sequence((1, 2, 3, 4), (5, 6), do_sample=True)
    choose(random_logits(1, 1), [one], history_of([one], [0], NUM_SLOTS, MAX_CONTEXT), [0])
    assert drawn == [2]


class Recorder(TorchDispatchMode):
    """Names of all operations, and an error for those that read a device's values on the host."""

    WAITING = (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique"),
        *("lift_fresh", "where.Scalar"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().removeprefix("aten::")
        indices = args[1] if name.startswith("index") and isinstance(args[1], Sequence) else ()
        if name.startswith(self.WAITING) or any(
            one is not None and one.dtype == torch.bool for one in indices
        ):
            raise AssertionError(f"{name} waits for the device")
        result = func(*args, **(kwargs or {}))
        # a conversion to what a tensor is already does nothing
        if result is not args[0] or not name.startswith("to."):
            self.names.append(name)
        return result


ALLOCATIONS_AND_VIEWS = ("empty", "slice", "view", "detach", "resolve_")


@pytest.fixture
def mixed() -> list[Sampling]:
    """Every filter, on some rows and not on others."""
    return [
        sequence(),
        sequence((1, 2), (3,), **EVERYTHING, logprobs=True, num_top_logprobs=4),
        sequence(do_sample=True, top_k=3),
        sequence((9,), min_new_tokens=4),
    ]


def test_choosing_reads_nothing_back(mixed: list[Sampling]) -> None:
    sampler = Sampler(history_of(mixed, range(4), NUM_SLOTS, MAX_CONTEXT), VOCAB)
    rows = [one.row(slot) for slot, one in enumerate(mixed)]
    logits_BV = random_logits(4, 5)
    with Recorder() as recorder:
        sampler.choose(logits_BV, rows)
        sampler.choose(logits_BV[:1], rows[1:2])
    assert len(recorder.names) > 80


@pytest.mark.parametrize(
    "waiting",
    [
        lambda ones_2: ones_2.sum().item(),
        lambda ones_2: ones_2[ones_2 > 0],
        lambda ones_2: ones_2 * torch.tensor([1.0, 2.0]),
        lambda ones_2: torch.where(ones_2 > 0, ones_2, 0.0),
    ],
)
@torch.inference_mode()
def test_the_recorder_knows_what_waits(waiting: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(AssertionError, match="waits"), Recorder():
        waiting(torch.ones(2))


def test_plain_greedy_rows_cost_one_maximum() -> None:
    sequences = [sequence((slot + 1,)) for slot in range(4)]
    sampler = Sampler(history_of(sequences, range(4), NUM_SLOTS, MAX_CONTEXT), VOCAB)
    rows = [one.row(slot) for slot, one in enumerate(sequences)]
    logits_BV = random_logits(4, 5).half()
    with Recorder() as recorder:
        sampler.choose(logits_BV, rows)
    work = [name for name in recorder.names if not name.startswith(ALLOCATIONS_AND_VIEWS)]
    assert work == ["max.dim_max", "scatter_.src", "copy_"]  # the last one takes the results to the host


def test_one_array_goes_up_and_one_comes_back(mixed: list[Sampling], monkeypatch: pytest.MonkeyPatch) -> None:
    """`to` with a device and `Download` are what moves data."""
    moved: list[str] = []
    to = torch.Tensor.to

    def counted(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("non_blocking"):
            moved.append("up")
        return to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    monkeypatch.setattr(results, "Download", lambda *_: moved.append("down"))
    sampler = Sampler(history_of(mixed, range(4), NUM_SLOTS, MAX_CONTEXT), VOCAB)
    sampler.choose(random_logits(4, 5), [one.row(slot) for slot, one in enumerate(mixed)])
    assert moved == ["up", "down"]


def test_rows_must_fit() -> None:
    sampler = Sampler(history_of([], [], NUM_SLOTS, MAX_CONTEXT), VOCAB)
    one = sequence()
    with pytest.raises(ValueError, match="1 rows for logits"):
        sampler.choose(random_logits(2, 1), [one.row(0)])
    with pytest.raises(ValueError, match="1 rows for logits"):
        sampler.choose(random_logits(1, 1, VOCAB + 1), [one.row(0)])
    for slot in (-1, NUM_SLOTS):
        with pytest.raises(ValueError, match=f"slot {slot} must be 0 to {NUM_SLOTS - 1}"):
            sampler.choose(random_logits(1, 1), [one.row(slot)])
    too_long = sequence((1,) * (MAX_CONTEXT + 1))
    with pytest.raises(ValueError, match=f"position {MAX_CONTEXT + 1}"):
        sampler.choose(random_logits(1, 1), [too_long.row(0)])


def test_the_history_must_be_a_contiguous_matrix() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        Sampler(torch.zeros(5, 4, dtype=torch.int64).T, VOCAB)


def test_a_device_that_fails_is_told_by_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels fail late: an error of the model shows up where the host first waits."""

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    one = sequence()
    sampler = Sampler(history_of([one], [0], NUM_SLOTS, MAX_CONTEXT), VOCAB)
    choice = sampler.choose(random_logits(1, 1), [one.row(0)])
    monkeypatch.setattr(choice._download, "_copied", SimpleNamespace(synchronize=broken))
    with pytest.raises(BackendDead, match="illegal memory access"):
        choice.results()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[str, int]]]:
    """Names of the filters that ran, and on how many rows."""
    seen: set[tuple[str, int]] = set()

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(scores: torch.Tensor, *args: Any) -> Any:
            seen.add((name, args[0].shape[0] if name == "read_history" else scores.shape[0]))
            return function(scores, *args)

        return call

    for name in FILTERS:
        monkeypatch.setattr(score_filters, name, recorded(name, getattr(score_filters, name)))
    return seen


FILTERS = [name for name in vars(score_filters) if not name.startswith("_") and name != "torch"]


def test_warm_up_uses_every_filter_alone_and_in_company(calls: set[tuple[str, int]]) -> None:
    warm_up(torch.device("cpu"), torch.float16, 3, 20)
    # by three, and by one: the only row of a batch, or one of three
    assert calls >= {(name, num_rows) for name in FILTERS for num_rows in (1, 3)}
