"""The hf backend and the loader on a GPU, with the demo model in FP16."""

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from gptj_serve.demo import MODEL_DIR
from gptj_serve.engine.failures import BatchLost
from gptj_serve.engine.static.hf import HfBackend, load_hf
from gptj_serve.engine.static.transformers_loader import load_model, needed_bytes
from gptj_serve.errors import StartupError
from gptj_serve.models.model_dir import Checkpoint, find_checkpoint

pytestmark = pytest.mark.gpu

TOLERANCE = 0.1
"""Greedy tokens may part where the two best logits are nearer than this: FP16 steps at 16 are 1/64."""

NUM_NEW = 32
Prompts = list[list[int]]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return find_checkpoint(MODEL_DIR)


@pytest.fixture(scope="module")
def loaded(checkpoint: Checkpoint) -> HfBackend:
    return load_hf(checkpoint, torch.device("cuda", 0))


@pytest.fixture
def backend(loaded: HfBackend) -> Iterator[HfBackend]:
    loaded.reset()
    yield loaded
    loaded.reset()


def random_prompts(backend: HfBackend, lengths: list[int], seed: int = 0) -> Prompts:
    rng = random.Random(seed)
    return [[rng.randrange(backend.limits.vocab_size) for _ in range(length)] for length in lengths]


def greedy(backend: HfBackend, prompts: Prompts) -> tuple[Prompts, torch.Tensor]:
    """Token ids a row, and the gap between the two best logits at each of them, [row, step]."""
    logits_BV = backend.prefill(prompts)
    tokens, gaps = [], []
    for step in range(NUM_NEW):
        best_B2 = logits_BV.topk(2, dim=-1).values
        gaps.append((best_B2[:, 0] - best_B2[:, 1]).cpu())
        tokens.append(logits_BV.argmax(dim=-1).tolist())
        if step < NUM_NEW - 1:
            logits_BV = backend.decode(tokens[-1])
    backend.reset()
    return [list(row) for row in zip(*tokens, strict=True)], torch.stack(gaps, dim=1)


def generate(backend: HfBackend, prompts: Prompts) -> Prompts:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device="cuda")
    mask = torch.tensor(
        [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device="cuda"
    )
    output = backend._model.generate(
        ids, attention_mask=mask, max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return output[:, longest:].tolist()


def assert_same(tokens: Prompts, gaps: torch.Tensor, expected: Prompts) -> None:
    """Equal, or the first difference of a row is at a near-tie; what follows it has no meaning."""
    for row, (got, want) in enumerate(zip(tokens, expected, strict=True)):
        parted = [step for step in range(NUM_NEW) if got[step] != want[step]]
        if parted:
            assert float(gaps[row, parted[0]]) < TOLERANCE, f"row {row} parts at step {parted[0]}"


@pytest.mark.parametrize("lengths", [[1], [2], [40], [1, 1], [1, 9, 64, 33], [17] * 8])
def test_greedy_tokens_equal_generate(backend: HfBackend, lengths: list[int]) -> None:
    prompts = random_prompts(backend, lengths)
    tokens, gaps = greedy(backend, prompts)
    assert_same(tokens, gaps, generate(backend, prompts))


def test_the_longest_prompt(backend: HfBackend) -> None:
    prompts = random_prompts(backend, [backend.limits.max_context - NUM_NEW, 1])
    tokens, gaps = greedy(backend, prompts)
    assert_same(tokens, gaps, generate(backend, prompts))


def test_a_row_does_not_depend_on_its_neighbours(backend: HfBackend) -> None:
    prompts = random_prompts(backend, [1, 9, 64, 33], seed=1)
    together, gaps = greedy(backend, prompts)
    alone = [greedy(backend, [prompt])[0][0] for prompt in prompts]
    assert_same(together, gaps, alone)


def test_fp16_weights_and_exact_rotary_tables(backend: HfBackend, checkpoint: Checkpoint) -> None:
    model = backend._model
    assert {(parameter.dtype, parameter.device.type) for parameter in model.parameters()} == {
        (torch.float16, "cuda")
    }
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    tensors = [*model.parameters(), *model.buffers()]
    assert sum(tensor.nbytes for tensor in tensors) == needed_bytes(checkpoint, torch.float16)


def test_a_gpu_that_is_too_small(checkpoint: Checkpoint) -> None:
    huge = replace(checkpoint, num_weights=10**12)
    before_bytes = torch.cuda.memory_allocated()
    with pytest.raises(StartupError) as caught:
        load_model(huge, torch.device("cuda", 0), torch.float16)
    message = str(caught.value)
    assert message.startswith(torch.cuda.get_device_name(0))
    assert "the weights need 1862." in message
    assert torch.cuda.memory_allocated() == before_bytes


def test_out_of_memory_while_loading(checkpoint: Checkpoint) -> None:
    """The check is passed, the memory is gone a moment later."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(StartupError, match="too little free memory"):
            load_model(checkpoint, torch.device("cuda", 0), torch.float64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_is_lost_leaves_the_backend_working(backend: HfBackend) -> None:
    prompts = random_prompts(backend, [1000] * 8)
    expected = backend.prefill(prompts).clone()
    backend.reset()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(BatchLost, match="the GPU ran out of memory: reading the prompts"):
            backend.prefill(prompts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    backend.reset()
    torch.testing.assert_close(backend.prefill(prompts), expected)


CUDA_ERROR = """
import torch
from gptj_serve.engine.failures import BackendDead
from gptj_serve.engine.sampling.sampler import Sampler, SamplerRow
from gptj_serve.request import GenerationRequest, SamplingParams

logits = torch.zeros(4, 10, device="cuda")
sampler = Sampler(torch.zeros(2, 4, dtype=torch.int64, device="cuda"), 10)
rows = [SamplerRow(GenerationRequest("", (1,), SamplingParams(max_new_tokens=2)), slot, 1) for slot in (0, 1)]
print(sampler.choose(logits[:1], rows[:1]).results()[0].token_id, flush=True)
wrong = logits[torch.tensor([0, 1000], device="cuda")]  # fails on the GPU, after this call has returned
try:
    sampler.choose(wrong, rows).results()
except BackendDead:
    print("dead", flush=True)
"""


def test_a_cuda_error_is_the_end() -> None:
    result = subprocess.run([sys.executable, "-c", CUDA_ERROR], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["0", "dead"]
