"""The sampler against Transformers' own processors, and what it promises beyond them."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, GPTJConfig, GPTJForCausalLM, LogitsProcessorList

from gptj_serve.engine.failures import BackendDead, BatchLost
from gptj_serve.engine.sampling import profile as sampling_profile
from gptj_serve.engine.sampling import score_filters, score_plan
from support.sampling_rows import Sampling, process_scores, sample
from support.sampling_rows import sequence as row

VOCAB = 50
EOS = (3, 7)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> GPTJForCausalLM:
    """Only asked for its logits processors."""
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 1, "rotary_dim": 4, "n_positions": 32, "vocab_size": VOCAB}
    return GPTJForCausalLM(GPTJConfig(**sizes, bos_token_id=0, eos_token_id=3))


def random_logits(num_rows: int, seed: int, vocab: int = VOCAB) -> torch.Tensor:
    return 4 * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed))


def transformers_scores(model: GPTJForCausalLM, row: Sampling, logits_V: torch.Tensor) -> torch.Tensor:
    """What Transformers' processors, built by Transformers in its order, make of one row."""
    params = row.sampling
    config = GenerationConfig(
        do_sample=params.do_sample,
        temperature=float(params.temperature),
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p or None,
        typical_p=params.typical_p,
        repetition_penalty=float(params.repetition_penalty),
        no_repeat_ngram_size=params.no_repeat_ngram_size,
        bad_words_ids=[list(word) for word in params.bad_words_ids] or None,
        suppress_tokens=list(params.suppress_tokens) or None,
        begin_suppress_tokens=list(params.begin_suppress_tokens) or None,
        min_new_tokens=params.min_new_tokens,
        eos_token_id=list(row.eos_token_ids),
    )
    config._eos_token_tensor = torch.tensor(row.eos_token_ids)
    processors = model._get_logits_processor(
        config, input_ids_seq_length=len(row.prompt_ids), logits_processor=LogitsProcessorList()
    )
    ids_1T = torch.tensor([[*row.prompt_ids, *row.generated_ids]])
    return processors(ids_1T, logits_V.float().unsqueeze(0).clone())[0]


def random_words(rng: random.Random, ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Some that may be completed now, and some that may not."""
    words = [tuple(rng.choices(range(VOCAB), k=rng.randint(1, 4))) for _ in range(rng.randint(0, 4))]
    ends = [ids[-length:] if length else () for length in range(4)]
    return (*words, *((*end, rng.randrange(VOCAB)) for end in ends if rng.random() < 0.4))


def random_row(rng: random.Random) -> Sampling:
    # few different ids, so that something comes twice
    ids = rng.choice([range(VOCAB), range(8, 12)])
    prompt_ids = tuple(rng.choices(ids, k=rng.randint(1, 12)))
    generated_ids = tuple(rng.choices(ids, k=rng.randint(0, 8)))
    return row(
        prompt_ids,
        generated_ids,
        no_repeat_ngram_size=rng.choice([0, 0, 1, 2, 3, 5, 30]),
        bad_words_ids=random_words(rng, (*prompt_ids, *generated_ids)) if rng.random() < 0.5 else (),
        suppress_tokens=tuple(rng.choices(range(VOCAB), k=rng.choice([0, 0, 3]))),
        begin_suppress_tokens=tuple(rng.choices(range(VOCAB), k=rng.choice([0, 0, 3]))),
        min_p=rng.choice([0.0, 0.0, 0.01, 0.2, 1.0]),
        do_sample=rng.random() < 0.8,
        min_new_tokens=rng.choice([0, 0, 4, 8]),
        temperature=rng.choice([1.0, 0.1, 0.7, 1.9]),
        top_k=rng.choice([0, 0, 1, 5, 49, 50, 1000]),
        top_p=rng.choice([1.0, 1.0, 0.05, 0.5, 0.9, 0.999]),
        typical_p=rng.choice([1.0, 1.0, 0.1, 0.5, 0.95]),
        repetition_penalty=rng.choice([1.0, 1.3, 0.6, 10.0]),
        seed=rng.getrandbits(64),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("seed", range(40))
def test_scores_equal_transformers(model: GPTJForCausalLM, seed: int, dtype: torch.dtype) -> None:
    """A batch of rows with different settings; float16 logits have many ties."""
    rng = random.Random(seed)
    rows = [random_row(rng) for _ in range(6)]
    logits_BV = random_logits(len(rows), seed).to(dtype)
    got = process_scores(logits_BV.float().clone(), rows)
    expected = torch.stack([transformers_scores(model, *pair) for pair in zip(rows, logits_BV, strict=True)])
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.3},
        {"top_k": 4},
        {"top_p": 0.6},
        {"typical_p": 0.4},
        {"min_p": 0.1},
        {"no_repeat_ngram_size": 1, "do_sample": False},
        {"bad_words_ids": ((2, 3, 9), (3, 11), (12,)), "do_sample": False},
        {"suppress_tokens": (5, 6), "do_sample": False},
        {"begin_suppress_tokens": (5, 6), "do_sample": False},
        {"repetition_penalty": 1.7, "do_sample": False},
        {"min_new_tokens": 5, "do_sample": False},
    ],
)
def test_each_setting_changes_the_scores(model: GPTJForCausalLM, settings: dict[str, Any]) -> None:
    """Guards the comparison above: each setting alone is applied, and equals Transformers'."""
    logits_BV = random_logits(1, 5)
    one = row(**{"do_sample": True, **settings})
    got = process_scores(logits_BV.clone(), [one])[0]
    assert not torch.equal(got, logits_BV[0])
    torch.testing.assert_close(got, transformers_scores(model, one, logits_BV[0]), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(10))
def test_greedy_equals_transformers(model: GPTJForCausalLM, seed: int) -> None:
    rng = random.Random(seed)
    request = random_row(rng).request
    greedy = replace(request, sampling=replace(request.sampling, do_sample=False))
    rows = [Sampling(greedy, (generated,) * generated) for generated in range(3)]
    logits_BV = random_logits(len(rows), seed).half()
    chosen = sample(logits_BV, rows)
    for one, logits_V, got in zip(rows, logits_BV, chosen, strict=True):
        assert got.token_id == int(transformers_scores(model, one, logits_V).argmax())


def test_an_ngram_of_the_prompt_is_not_said_again() -> None:
    ids = (20, 21, 22, 30, 20, 21)
    logits = torch.zeros(1, VOCAB)
    logits[0, [22, 30, 21]] = torch.tensor([5.0, 4.0, 3.0])

    def choose(size: int, prompt: tuple[int, ...] = ids, generated: tuple[int, ...] = ()) -> int:
        (result,) = sample(logits, [row(prompt, generated, no_repeat_ngram_size=size)])
        return result.token_id

    assert [choose(size) for size in (0, 1, 2, 3, 4, 100)] == [22, 0, 30, 30, 22, 22]
    assert choose(3, ids[:3], ids[3:]) == 30
    assert choose(2, (22, 22)) == 30
    assert choose(2, (22,)) == 22


def test_bad_words_have_to_be_generated_whole() -> None:
    """vLLM's meaning; Transformers' ids may begin in the prompt."""
    logits = torch.zeros(1, VOCAB)
    logits[0, [9, 8, 7]] = torch.tensor([5.0, 4.0, 3.0])

    def choose(prompt: tuple[int, ...], generated: tuple[int, ...], **words: Any) -> int:
        (result,) = sample(logits, [row(prompt, generated, **words)])
        return result.token_id

    word = ((4, 5, 9),)
    assert choose((4, 5), (), bad_words=word) == choose((4,), (5,), bad_words=word) == 9
    assert choose((1,), (4, 5), bad_words=word) == 8
    assert choose((1, 4, 5), (), bad_words_ids=word) == choose((1,), (4, 5), bad_words_ids=word) == 8
    # which Transformers lets pass: nothing is before it
    assert choose((4, 5), (), bad_words_ids=word) == 9
    assert choose((1,), (), bad_words=((9,), (8,))) == 7
    assert choose((1,), (4, 5), bad_words=(*word, (5, 8), (4, 7)), bad_words_ids=((6, 6, 6, 6),)) == 7
    # ids that the model does not know hurt nobody
    assert choose((1, 4), (), bad_words_ids=((4, VOCAB), (VOCAB,), (VOCAB, 9))) == 9
    # nor is the end of text a word
    assert choose((1,), (), bad_words_ids=((9,),), eos_token_ids=(9,)) == 9


def test_every_token_forbidden_fails_the_row_alone() -> None:
    rows = [row(suppress_tokens=tuple(range(VOCAB))), row(no_repeat_ngram_size=2)]
    forbidden, fine = sample(random_logits(2, 8), rows)
    assert forbidden.error is not None
    assert fine.error is None


def test_penalty_counts_prompt_and_generated_tokens() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [10, 11, 12]] = torch.tensor([4.0, 3.0, 2.5])
    assert [result.token_id for result in sample(logits, [row()])] == [10]
    penalised = row((10,), (11,), repetition_penalty=2.0)
    assert [result.token_id for result in sample(logits, [penalised])] == [12]


def test_min_new_tokens_holds_back_every_eos_until_reached() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [3, 7, 20]] = torch.tensor([9.0, 8.0, 7.0])

    def choose(num_generated: int, eos: tuple[int, ...] = EOS) -> int:
        held = row(generated_ids=(1,) * num_generated, min_new_tokens=2, eos_token_ids=eos)
        (result,) = sample(logits, [held])
        return result.token_id

    assert [choose(0), choose(1), choose(2)] == [20, 20, 3]
    assert choose(0, eos=()) == 3
    assert choose(0, eos=(3, 7, VOCAB, -1)) == 20  # ids that the model does not know hurt nobody


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_greedy_ties_take_the_lowest_id(dtype: torch.dtype) -> None:
    logits = torch.zeros(2, VOCAB, dtype=dtype)
    logits[:, [40, 13, 29]] = 5.0
    plain, processed = sample(logits, [row(), row(repetition_penalty=1.5)])
    assert (plain.token_id, processed.token_id) == (13, 13)


def test_logprob_is_of_the_raw_logits() -> None:
    """Penalties, temperature and filters change the choice, not the probability reported."""
    logits_BV = random_logits(4, 3).half()
    rows = [
        row(logprobs=True),
        row(logprobs=True, do_sample=True, temperature=0.2, top_k=3, seed=1),
        row(logprobs=True, prompt_ids=tuple(range(40)), repetition_penalty=5.0),
        row(),
    ]
    expected_BV = logits_BV.float().log_softmax(dim=-1)
    results = sample(logits_BV, rows)
    for index, result in enumerate(results[:3]):
        assert result.logprob == pytest.approx(float(expected_BV[index, result.token_id]), abs=1e-6)
    assert results[3].logprob is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_p": 0.9, "typical_p": 0.9, "top_k": 5}])
def test_a_row_that_is_not_finite_fails_alone(bad: float, settings: dict[str, Any]) -> None:
    logits_BV = random_logits(3, 6)
    rows = [row(seed=index, **settings) for index in range(3)]
    healthy = sample(logits_BV, rows)
    broken_BV = logits_BV.clone()
    broken_BV[1, 30] = bad
    results = sample(broken_BV, rows)
    assert results[1].error is not None
    assert "finite" in results[1].error.message
    assert (results[0], results[2]) == (healthy[0], healthy[2])


def test_a_temperature_that_overflows_fails_its_row_alone() -> None:
    logits_BV = random_logits(2, 7)
    cold, fine = sample(logits_BV, [row(do_sample=True, temperature=1e-42), row(do_sample=True)])
    assert cold.error is not None
    assert fine.error is None


def test_does_not_change_the_logits() -> None:
    logits_BV = random_logits(2, 8)
    before_BV = logits_BV.clone()
    sample(logits_BV, [row(do_sample=True, top_k=3, repetition_penalty=2.0, min_new_tokens=9)] * 2)
    assert torch.equal(logits_BV, before_BV)


def draws(logits_V: torch.Tensor, num: int, seed: int, **sampling: Any) -> list[int]:
    """The tokens of the first 100 positions of sequences whose seeds follow each other."""
    tokens = []
    for first in range(0, num, 100):
        one = {"do_sample": True, "seed": seed + first // 100, **sampling}
        rows = [row((1,), (0,) * position, **one) for position in range(100)]
        tokens += [result.token_id for result in sample(logits_V.repeat(100, 1), rows)]
    return tokens


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 4},
        {"top_p": 0.8},
        {"typical_p": 0.7},
        {"temperature": 2.0, "top_k": 6},
    ],
)
def test_draws_follow_the_filtered_distribution(model: GPTJForCausalLM, settings: dict[str, Any]) -> None:
    """Chi-square over 3200 tokens at significance 0.001; what is filtered out never comes."""
    logits_V = random_logits(1, 11, vocab=8)[0] / 3
    one = row((1,), do_sample=True, eos_token_ids=(), **settings)
    probs = transformers_scores(model, one, logits_V).softmax(dim=-1)
    counts = Counter(draws(logits_V, 3200, seed=2024, **settings))
    kept = [token for token in range(8) if probs[token] > 0]
    assert set(counts) <= set(kept)
    expected = {token: 3200 * float(probs[token]) for token in kept}
    chi_square = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in kept)
    # 0.999 quantiles of chi-square for 1 to 7 degrees of freedom
    limit = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32][len(kept) - 2]
    assert len(kept) > 1
    assert min(expected.values()) > 5
    assert chi_square < limit


def drawn(scores_RV: torch.Tensor, uniforms: list[float]) -> torch.Tensor:
    return score_filters.draw(scores_RV, torch.tensor(uniforms, dtype=torch.float64).unsqueeze(1))


def test_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    probs_V = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    uniforms = [0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53]
    tokens = drawn(probs_V.log().repeat(len(uniforms), 1), uniforms)
    assert tokens.flatten().tolist() == [1, 1, 3, 3, 4, 4]


def test_a_token_without_probability_is_never_drawn() -> None:
    """The largest uniform number over many totals that do not sum to one exactly."""
    scores_RV = random_logits(300, 12, vocab=1000)
    scores_RV[:, 900:] = float("-inf")
    scores_RV[:, :100] = float("-inf")
    highest = drawn(scores_RV, [1 - 2**-53] * 300)
    lowest = drawn(scores_RV, [0.0] * 300)
    assert highest.max() == 899
    assert lowest.min() == lowest.max() == 100


def test_a_cumulative_sum_that_is_never_passed_gives_the_last_possible_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sums on a GPU may end a little lower than they were in between, or rise at an impossible token."""

    crooked = torch.tensor([[0.1, 0.5, 0.9, 1.0]], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda *_, **__: crooked)
    scores = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    assert drawn(scores, [0.05]).item() == 1
    assert drawn(scores, [0.95]).item() == 2


def test_the_same_seed_gives_the_same_tokens_in_any_company() -> None:
    rng = random.Random(1)
    logits_BV = random_logits(8, 13)
    rows = [replace(random_row(rng), generated_ids=(1,) * index) for index in range(8)]
    together = sample(logits_BV, rows)
    alone = [sample(logits_BV[index : index + 1], [rows[index]])[0] for index in range(8)]
    assert together == alone
    order = rng.sample(range(8), 8)
    shuffled = sample(logits_BV[order], [rows[index] for index in order])
    assert [shuffled[order.index(index)] for index in range(8)] == together


def test_seed_sequence_and_position_make_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[int, int, int]] = []
    monkeypatch.setattr(sampling_profile, "sequence_state", lambda *state: state)
    monkeypatch.setattr(
        score_plan, "uniform_at", lambda state, position: keys.append((*state, position)) or 0.5
    )
    sample(random_logits(1, 14), [row(generated_ids=(5, 6), do_sample=True, seed=11, sequence_index=4)])
    assert keys == [(11, 4, 2)]


def test_sequences_of_one_prompt_differ() -> None:
    logits_V = torch.zeros(VOCAB)
    sequences = [tuple(draws(logits_V, 100, seed=5, sequence_index=index)) for index in range(4)]
    assert len(set(sequences)) == 4
    assert all(
        sum(a == b for a, b in zip(first, second, strict=True)) < 15
        for first, second in itertools.combinations(sequences, 2)
    )


def test_sampling_without_filters_never_sorts(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("sorted for nothing")

    monkeypatch.setattr(torch.Tensor, "sort", fail)
    monkeypatch.setattr(torch.Tensor, "topk", fail)
    results = sample(random_logits(2, 15), [row(), row(do_sample=True, temperature=0.8)])
    assert all(result.error is None for result in results)
    with pytest.raises(BatchLost):
        sample(random_logits(1, 15), [row(do_sample=True, top_p=0.5)])


def test_rows_and_logits_must_match() -> None:
    with pytest.raises(ValueError, match="2 rows for logits"):
        sample(random_logits(3, 17), [row(), row()])


def test_device_errors_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels fail late: a CUDA error of the model shows up in the sampler's transfer."""

    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.Tensor, "copy_", broken)
    with pytest.raises(BackendDead, match="illegal memory access"):
        sample(random_logits(1, 18), [row()])


def test_openais_additions_change_the_rows_that_ask_alone() -> None:
    logits = random_logits(4, seed=11)
    asked = {"presence_penalty": 0.5, "frequency_penalty": -0.25, "logit_bias": ((5, 3.0), (9, -100.0))}
    rows = [
        row(),
        row(generated_ids=(5, 5, 8), **asked),
        row(generated_ids=(1,), presence_penalty=2.0),
        row(),
    ]
    expected = logits.clone()
    expected[1, 5] += 3.0 - 0.5 + 0.25 * 2
    expected[1, 8] += -0.5 + 0.25
    expected[1, 9] += -100.0
    expected[2, 1] -= 2.0
    torch.testing.assert_close(process_scores(logits.clone(), rows), expected)
    chosen = sample(logits, rows)
    assert [one.token_id for one in chosen] == expected.argmax(dim=-1).tolist()


def test_a_bias_outside_the_vocabulary_is_ignored() -> None:
    logits = random_logits(1, seed=12)
    (chosen,) = sample(logits, [row(logit_bias=((VOCAB, 100.0), (VOCAB + 7, 100.0)))])
    assert chosen.token_id == int(logits.argmax())


def test_the_likeliest_tokens_are_those_of_the_models_own_distribution() -> None:
    logits = random_logits(3, seed=13)
    asks = row(logprobs=True, logit_bias=((5, 50.0),), num_top_logprobs=4)
    chosen = sample(logits, [asks, row(logprobs=True), row()])
    values, ids = logits.log_softmax(dim=-1).topk(4)
    assert chosen[0].token_id == 5
    assert [token_id for token_id, _ in chosen[0].top_logprobs] == ids[0].tolist()
    assert [value for _, value in chosen[0].top_logprobs] == pytest.approx(values[0].tolist())
    assert chosen[1].top_logprobs == ()


def openais_additions(one: Sampling) -> dict[int, float]:
    """What is added to the logits of single tokens, counted by hand."""
    added = {token_id: value for token_id, value in dict(one.sampling.logit_bias).items() if token_id < VOCAB}
    for token_id, count in Counter(one.generated_ids).items():
        penalty = one.sampling.presence_penalty + one.sampling.frequency_penalty * count
        added[token_id] = added.get(token_id, 0.0) - penalty
    return added


@pytest.mark.parametrize("seed", range(20))
def test_openais_additions_are_rounded_once(seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        row(
            tuple(rng.choices(range(VOCAB), k=5)),
            tuple(rng.choices(range(8), k=rng.randint(0, 12))),
            presence_penalty=rng.choice([0.0, rng.uniform(-2, 2)]),
            frequency_penalty=rng.choice([0.0, rng.uniform(-2, 2)]),
            logit_bias=tuple(
                (rng.randrange(VOCAB + 3), rng.uniform(-100, 100)) for _ in range(rng.randint(0, 4))
            ),
        )
        for _ in range(6)
    ]
    logits_BV = random_logits(6, seed)
    expected_BV = logits_BV.clone()
    for b, one in enumerate(rows):
        for token_id, value in openais_additions(one).items():
            expected_BV[b, token_id] += torch.tensor(value, dtype=torch.float32)
    assert torch.equal(process_scores(logits_BV, rows), expected_BV)
