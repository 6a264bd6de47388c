"""The fused engine on the CPU, with the kernels' plain twin: its tokens are Transformers' tokens."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPTJForCausalLM

from gptj_serve.engine.failures import BackendDead
from gptj_serve.engine.fused import warm_up
from gptj_serve.engine.fused.build import load_fused
from gptj_serve.engine.fused.kernels.plain import PlainKernels
from gptj_serve.engine.fused.kernels.protocol import State, Tokens
from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.runner import FusedRunner
from gptj_serve.engine.fused.warm_up import check
from gptj_serve.engine.static.hf import load_hf
from gptj_serve.errors import StartupError
from gptj_serve.models.model_dir import Checkpoint, find_checkpoint
from gptj_serve.request import GenerationRequest, SamplingParams
from support.fused_generation import Driver, check_greedy, greedy, ids
from support.sampling_rows import Sampling, sample
from support.tiny_model import write_model

TOLERANCE = 1e-3
VOCAB = 100


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring at these sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory = write_model(
        tmp_path_factory.mktemp("model"), n_embd=128, n_head=2, n_inner=192, rotary_dim=8, n_positions=256
    )
    return find_checkpoint(directory)


@pytest.fixture(scope="module")
def runner(checkpoint: Checkpoint) -> FusedRunner:
    return load_fused(checkpoint, torch.device("cpu"), max_batch_size=4)


@pytest.fixture(scope="module")
def truth(checkpoint: Checkpoint) -> GPTJForCausalLM:
    return GPTJForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    chosen = random.Random(f"{length} {seed}")
    return tuple(chosen.randrange(VOCAB - 1) for _ in range(length))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_alone(runner: FusedRunner, truth: GPTJForCausalLM, length: int) -> None:
    tokens = Driver(runner).run({0: {"a": greedy(prompt(length), 40)}})
    assert check_greedy(truth, prompt(length), ids(tokens["a"]), TOLERANCE) >= 39
    assert len(tokens["a"]) == 40


def test_requests_join_and_leave(runner: FusedRunner, truth: GPTJForCausalLM) -> None:
    """Prompts and decoding share steps, slots and blocks go from one sequence to the next."""
    lengths = {f"{number}": 1 + 13 * number % 90 for number in range(14)}
    arrivals = {
        3 * number: {name: greedy(prompt(length), 5 + 7 * number % 31)}
        for number, (name, length) in enumerate(lengths.items())
    }
    driver = Driver(runner)
    found = driver.run(arrivals)
    assert any(step.prefills and step.decodes for step in driver.steps)
    assert any(len(step.decodes) == 4 for step in driver.steps)
    for number, (name, length) in enumerate(lengths.items()):
        assert len(found[name]) == 5 + 7 * number % 31
        check_greedy(truth, prompt(length), ids(found[name]), TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 7, 16, 50])
def test_chunked_prompts(runner: FusedRunner, truth: GPTJForCausalLM, chunk: int) -> None:
    driver = Driver(runner, prefill_chunk=chunk, max_prefill=max(chunk, 20))
    found = driver.run({0: {"a": greedy(prompt(5), 60)}, 2: {"b": greedy(prompt(90), 10)}})
    assert sum(bool(step.prefills) for step in driver.steps) >= 90 // max(chunk, 20)
    check_greedy(truth, prompt(5), ids(found["a"]), TOLERANCE)
    check_greedy(truth, prompt(90), ids(found["b"]), TOLERANCE)


def test_preemption(runner: FusedRunner, truth: GPTJForCausalLM) -> None:
    """Four sequences that grow to 60 positions each, and a cache for 8 blocks of 16."""
    driver = Driver(runner, num_blocks=8)
    names = "abcd"
    found = driver.run({0: {name: greedy(prompt(20, seed), 40) for seed, name in enumerate(names)}})
    assert driver.scheduler.counters.preempted
    for seed, name in enumerate(names):
        assert len(found[name]) == 40
        check_greedy(truth, prompt(20, seed), ids(found[name]), TOLERANCE)


def test_cancellation_leaves_the_others_alone(runner: FusedRunner) -> None:
    alone = Driver(runner).run({0: {"a": greedy(prompt(20), 30)}})
    driver = Driver(runner)
    found = driver.run({0: {"a": greedy(prompt(20), 30), "b": greedy(prompt(40), 200)}}, aborts={10: "b"})
    assert driver.ended == {"a": "length", "b": "cancelled"}
    assert ids(found["a"]) == ids(alone["a"])
    assert 8 <= len(found["b"]) <= 10


SAMPLINGS = {
    "plain": SamplingParams(12, do_sample=True, seed=3),
    "all": SamplingParams(
        12, 5, do_sample=True, temperature=0.7, top_k=30, top_p=0.9, repetition_penalty=1.2, seed=5
    ),
    "openai": SamplingParams(12, do_sample=True, presence_penalty=1.0, frequency_penalty=0.7, seed=6),
    "typical": SamplingParams(12, do_sample=True, typical_p=0.8, seed=7, sequence_index=1),
    "bias": SamplingParams(12, logit_bias=((5, 3.0), (9, -100.0)), repetition_penalty=1.5),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_sampled_tokens_are_those_of_the_hf_engine(
    runner: FusedRunner, checkpoint: Checkpoint, name: str
) -> None:
    """The same seed gives the same text on either engine, alone or among others."""
    request = GenerationRequest("", prompt(9), SAMPLINGS[name], (99,), logprobs=True, num_top_logprobs=3)
    wanted = hf_tokens(checkpoint, request)
    others = {f"{number}": greedy(prompt(11 + number), 30) for number in range(2)}
    for arrivals in ({0: {"a": request}}, {0: others, 4: {"a": request}}):
        found = Driver(runner).run(arrivals)["a"]
        assert ids(found) == ids(wanted)
        for got, expected in zip(found, wanted, strict=True):
            assert got.logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert [one for one, _ in got.top_logprobs] == [one for one, _ in expected.top_logprobs]


def hf_tokens(checkpoint: Checkpoint, request: GenerationRequest) -> list:  # type: ignore[type-arg]
    backend = load_hf(checkpoint, torch.device("cpu"), max_batch_size=1)
    logits_BV = backend.prefill([request.prompt_ids])
    found = []
    while True:
        (one,) = sample(logits_BV, [Sampling(request, tuple(one.token_id for one in found))])
        found.append(one)
        if one.token_id in request.eos_token_ids or len(found) == request.sampling.max_new_tokens:
            return found
        logits_BV = backend.decode([one.token_id])


class OwnDecode(PlainKernels):
    """Decodes a few rows itself, as the CUDA kernels do; `factor` makes it wrong."""

    max_decode_rows = 2

    def __init__(self, state: State, factor: float = 1.0) -> None:
        super().__init__(state)
        self._model = FusedModel(state, PlainKernels(state))
        self._factor = factor
        self.num_rows: list[int] = []

    def decode(self, tokens: Tokens) -> None:
        self.num_rows.append(tokens.num_tokens)
        self._model.decode(tokens)
        self._state.scratch.logits_TV[: tokens.num_tokens] *= self._factor


def with_own_decode(checkpoint: Checkpoint, factor: float = 1.0) -> tuple[FusedRunner, OwnDecode]:
    plain = load_fused(checkpoint, torch.device("cpu"), max_batch_size=6)
    kernels = OwnDecode(plain.state, factor)
    return FusedRunner(plain.state, kernels, plain.limits), kernels


def test_two_ways_to_decode_that_agree_pass_the_check(checkpoint: Checkpoint) -> None:
    check(with_own_decode(checkpoint)[0])


@pytest.mark.parametrize("factor", [1.2, float("nan")])
def test_kernels_that_compute_something_else_do_not_start(checkpoint: Checkpoint, factor: float) -> None:
    with pytest.raises(StartupError, match="do not agree on the next token"):
        check(with_own_decode(checkpoint, factor)[0])


def test_seeded_sequences_are_decoded_in_small_groups_that_others_fill_up(checkpoint: Checkpoint) -> None:
    """So that the bits of their logits do not depend on how many others there are."""
    runner, kernels = with_own_decode(checkpoint)
    seeded = GenerationRequest(
        "", prompt(9), SamplingParams(8, do_sample=True, seed=3, temperature=2.0), reproducible=True
    )
    alone = ids(Driver(runner).run({0: {"a": seeded}})["a"])
    kernels.num_rows.clear()
    others = {f"{number}": greedy(prompt(5 + number), 20) for number in range(5)}
    driver = Driver(runner)
    assert ids(driver.run({0: others, 3: {"a": seeded}})["a"]) == alone
    six = [step for step in driver.steps if len(step.decodes) == 6]
    assert six
    assert kernels.num_rows.count(2) >= len(six)
    for number, (name, request) in enumerate(others.items()):
        assert ids(driver.tokens[name]) == ids(Driver(runner).run({0: {"a": request}})["a"]), number


def test_limits_are_checked(runner: FusedRunner) -> None:
    driver = Driver(runner)
    driver.run({0: {"a": greedy(prompt(4), 2)}})
    row = driver.steps[0].prefills[0]
    for wrong, what in (
        (replace(row, slot=4), "slot 4; must be 0 to 3"),
        (replace(row, start=253), "context"),
        (replace(row, blocks=()), "0 blocks"),
    ):
        with pytest.raises(ValueError, match=what):
            runner.launch(replace(driver.steps[0], prefills=(wrong,)))


def test_a_model_in_a_folder_of_another_geometry(tmp_path: Path) -> None:
    """Heads of 128, a vocabulary that is no multiple of anything, tied embeddings."""
    directory = write_model(
        tmp_path, n_embd=256, n_head=2, n_inner=64, rotary_dim=128, vocab_size=101, tie_word_embeddings=True
    )
    runner = load_fused(find_checkpoint(directory), torch.device("cpu"), max_batch_size=2)
    model = GPTJForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokens = Driver(runner).run({0: {"a": greedy((1, 2, 3), 20)}})
    check_greedy(model, (1, 2, 3), ids(tokens["a"]), TOLERANCE)


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        (
            "embed: CUDA error: no kernel image is available",
            "in KERNEL_ARCHS, or set GPTJ_ENGINE=deepspeed or hf",
        ),
        ("embed: CUDA error: an illegal memory access", "access); set GPTJ_ENGINE=deepspeed or hf"),
    ],
)
def test_kernels_that_do_not_start_end_it_with_a_reason(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, said: str, cure: str
) -> None:
    def fail(_: FusedRunner) -> None:
        raise BackendDead(said)

    monkeypatch.setattr(warm_up, "warm_up", fail)
    with pytest.raises(StartupError) as refused:
        load_fused(checkpoint, torch.device("cpu"), max_batch_size=4)
    assert str(refused.value).startswith(f"the fused engine's kernels could not be started ({said}")
    assert str(refused.value).endswith(cure)
