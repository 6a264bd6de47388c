"""The fused engine on a GPU: whole generations with the demo model, and the logits of GPT-J-6B's shape."""

import gc
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPTJForCausalLM

from gptj_serve import demo
from gptj_serve.benchmark.engine.decode import GPT_J_6B
from gptj_serve.engine.fused.build import load_fused
from gptj_serve.engine.fused.graphs import PrefillGraphs
from gptj_serve.engine.fused.kernels.cuda import CudaKernels
from gptj_serve.engine.fused.kernels.library import find_library
from gptj_serve.engine.fused.kernels.plain import PlainKernels
from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.runner import FusedRunner
from gptj_serve.engine.fused.schedule.plan import Row
from gptj_serve.engine.fused.step_inputs import PrefillShape, StepInputs
from gptj_serve.models.model_dir import find_checkpoint
from gptj_serve.request import GenerationRequest, SamplingParams
from support.fused_generation import Driver, check_greedy, greedy, ids
from support.prefill_rows import BEGINNING, CONTINUING, DECODES
from support.random_states import batch, copy_of, random_state, random_weights, rms, spoil_what_is_not_cached

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

TOLERANCE = 0.05
"""Of a logit, in standard deviations of the row's: what FP16 may cost."""

DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def runner() -> FusedRunner:
    return load_fused(find_checkpoint(demo.MODEL_DIR), DEVICE)


@pytest.fixture
def empty_gpu() -> None:
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def truth() -> GPTJForCausalLM:
    model: GPTJForCausalLM = GPTJForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float32)
    return model.to(DEVICE).eval()  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    chosen = random.Random(f"{length} {seed}")
    return tuple(chosen.randrange(1, 2000) for _ in range(length))


@pytest.mark.parametrize("length", [1, 2, 16, 17, 255, 256, 257, 600, 1948])
def test_greedy_tokens_are_those_of_transformers(
    runner: FusedRunner, truth: GPTJForCausalLM, length: int
) -> None:
    tokens = Driver(runner).run({0: {"a": greedy(prompt(length), 100)}})
    assert len(tokens["a"]) == 100
    assert check_greedy(truth, prompt(length), ids(tokens["a"]), TOLERANCE) >= 95


@pytest.mark.parametrize("num_sequences", [5, 16, 17, 40, 64])
def test_many_join_and_leave(runner: FusedRunner, truth: GPTJForCausalLM, num_sequences: int) -> None:
    lengths = {f"{number}": 1 + 37 * number % 500 for number in range(num_sequences)}
    arrivals = {
        2 * number: {name: greedy(prompt(length), 80 + 7 * number % 61)}
        for number, (name, length) in enumerate(lengths.items())
    }
    driver = Driver(runner)
    found = driver.run(arrivals)
    assert max(len(step.decodes) for step in driver.steps) > num_sequences // 2
    for number, (name, length) in enumerate(lengths.items()):
        assert len(found[name]) == 80 + 7 * number % 61
        check_greedy(truth, prompt(length), ids(found[name]), TOLERANCE)


def test_preemption_and_small_chunks(runner: FusedRunner, truth: GPTJForCausalLM) -> None:
    driver = Driver(runner, num_blocks=200, prefill_chunk=64, max_prefill=128)
    names = [f"{number}" for number in range(24)]
    found = driver.run({0: {name: greedy(prompt(100, seed), 150) for seed, name in enumerate(names)}})
    assert driver.scheduler.counters.preempted
    for seed, name in enumerate(names):
        assert len(found[name]) == 150
        check_greedy(truth, prompt(100, seed), ids(found[name]), TOLERANCE)


def test_a_chosen_seed_gives_the_same_text_whatever_else_runs(runner: FusedRunner) -> None:
    request = GenerationRequest(
        "", prompt(300), SamplingParams(60, do_sample=True, temperature=1.5, seed=11), reproducible=True
    )
    alone = ids(Driver(runner).run({0: {"a": request}})["a"])
    others = {f"{number}": greedy(prompt(50 + number), 120) for number in range(30)}
    for arrivals in ({0: others, 7: {"a": request}}, {0: {"a": request}, 9: others}):
        assert ids(Driver(runner).run(arrivals)["a"]) == alone


@pytest.mark.parametrize(
    ("prompts", "decodes"),
    [(BEGINNING, ()), (BEGINNING, DECODES), (CONTINUING, ()), (CONTINUING, DECODES), (BEGINNING[1:], ())],
)
def test_graphs_of_prompts_compute_what_launching_does(
    runner: FusedRunner, prompts: tuple[Row, ...], decodes: tuple[Row, ...]
) -> None:
    state, limits = runner.state, runner.limits
    shape = PrefillShape.of(prompts, decodes)
    assert runner.prefill_graphs.shape_for(shape) is not None
    major, minor = torch.cuda.get_device_capability()
    model = FusedModel(state, CudaKernels(find_library(os.environ, [f"{major}.{minor}"]), state))
    inputs = StepInputs(limits, state.history_SC.shape[1])
    launching = PrefillGraphs(model, inputs, limits, can_capture=False, device=DEVICE)
    found = []
    for graphs in (launching, runner.prefill_graphs):
        for row in (*prompts, *decodes):
            if row.start:  # what it finds in the cache
                before = tuple(range(1, row.start + 1))
                launching.prefill([replace(row, start=0, token_ids=before, samples=False)], [])
        graphs.prefill(prompts, decodes)
        found.append(state.scratch.logits_TV[: shape.num_choosing].clone())
    for place in range(shape.num_choosing):
        assert rms(found[1][place], found[0][place]) <= 0.01, place


def test_cancellation_leaves_the_others_alone(runner: FusedRunner, truth: GPTJForCausalLM) -> None:
    arrivals = {
        0: {"a": greedy(prompt(20), 60), "b": greedy(prompt(40), 600)},
        12: {"c": greedy(prompt(9), 60)},
    }
    driver = Driver(runner)
    found = driver.run(arrivals, aborts={10: "b"})
    assert driver.ended == {"a": "length", "b": "cancelled", "c": "length"}
    for name, length in (("a", 20), ("c", 9)):
        check_greedy(truth, prompt(length), ids(found[name]), TOLERANCE)


@pytest.mark.parametrize(
    "positions", [(50,), (2047,), tuple(range(100, 1700, 100)), tuple(range(0, 1920, 96))]
)
@pytest.mark.usefixtures("empty_gpu")
def test_logits_of_gpt_j_6b(library: Path, positions: tuple[int, ...]) -> None:
    """GPT-J-6B's shape, random weights: within 1 % of float32 on the same weights."""
    state = random_state(GPT_J_6B, random_weights(GPT_J_6B, DEVICE, torch.float16), 1300)
    of = batch(state, positions)
    spoil_what_is_not_cached(state, of)
    exact = copy_of(state, torch.float32)
    FusedModel(exact, PlainKernels(exact)).decode(of.tokens)
    FusedModel(state, CudaKernels(library, state)).decode(of.tokens)
    for row in range(len(positions)):
        assert rms(state.scratch.logits_TV[row], exact.scratch.logits_TV[row]) <= 0.01
