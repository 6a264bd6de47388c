"""The hf backend against Transformers' own ``generate``, and its limits and failures."""

import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptj_serve.engine.failures import BackendDead, BatchLost
from gptj_serve.engine.scheduler import Limits
from gptj_serve.engine.static import hf
from gptj_serve.engine.static.backend import Backend
from gptj_serve.engine.static.hf import HfBackend, load_hf, row_bytes, rows_that_fit, warm_up
from gptj_serve.engine.static.transformers_loader import load_model
from gptj_serve.errors import StartupError
from gptj_serve.models.families import read_architecture
from gptj_serve.models.model_dir import Checkpoint, find_checkpoint
from support.tiny_model import write_model

CPU = torch.device("cpu")
VOCAB = 100
CONTEXT = 64
NUM_NEW = 10

Prompts = list[list[int]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return find_checkpoint(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def loaded(checkpoint: Checkpoint) -> HfBackend:
    torch.set_num_threads(1)
    return load_hf(checkpoint, CPU)


@pytest.fixture
def backend(loaded: HfBackend) -> HfBackend:
    loaded.reset()
    return loaded


def random_prompts(lengths: list[int], seed: int = 0) -> Prompts:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


def greedy(backend: Backend, prompts: Prompts, num_new: int) -> tuple[Prompts, torch.Tensor]:
    """Token ids a row, and the logits of every step, [step, row, vocabulary]."""
    logits = [backend.prefill(prompts).clone()]
    tokens = [logits[0].argmax(dim=-1).tolist()]
    for _ in range(num_new - 1):
        logits.append(backend.decode(tokens[-1]).clone())
        tokens.append(logits[-1].argmax(dim=-1).tolist())
    backend.reset()
    return [list(row) for row in zip(*tokens, strict=True)], torch.stack(logits)


def generate(backend: HfBackend, prompts: Prompts, num_new: int) -> Prompts:
    """Transformers' greedy answer to a batch, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = backend._model.generate(
        ids, attention_mask=mask, max_new_tokens=num_new, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return output[:, longest:].tolist()


@pytest.mark.parametrize(
    "lengths", [[1], [2], [5], [CONTEXT - NUM_NEW], [1, 1], [7, 7, 7], [1, 5, 30], [54, 2, 1, 17], [3] * 8]
)
def test_greedy_tokens_equal_generate(backend: HfBackend, lengths: list[int]) -> None:
    prompts = random_prompts(lengths, seed=len(lengths))
    tokens, _ = greedy(backend, prompts, NUM_NEW)
    assert tokens == generate(backend, prompts, NUM_NEW)
    assert len({tuple(row) for row in tokens}) > 1 or len(lengths) == 1  # the model is no constant


def test_a_row_does_not_depend_on_its_neighbours(backend: HfBackend) -> None:
    prompts = random_prompts([1, 9, 40, 23, 2], seed=3)
    together_tokens, together = greedy(backend, prompts, NUM_NEW)
    for row, prompt in enumerate(prompts):
        tokens, alone = greedy(backend, [prompt], NUM_NEW)
        assert tokens == [together_tokens[row]]
        torch.testing.assert_close(together[:, row : row + 1], alone, rtol=0, atol=2e-4)


def test_decode_equals_a_longer_prompt(backend: HfBackend) -> None:
    (prompt,) = random_prompts([20], seed=4)
    backend.prefill([prompt[:8]])
    for token in prompt[8:]:
        logits_BV = backend.decode([token]).clone()
    backend.reset()
    torch.testing.assert_close(logits_BV, backend.prefill([prompt]), rtol=0, atol=2e-4)


def test_nothing_of_a_batch_reaches_the_next(backend: HfBackend) -> None:
    """One-token prompts too, where a stale cache would go unnoticed."""
    prompts = random_prompts([1, 4], seed=5)
    _, first = greedy(backend, prompts, 4)
    greedy(backend, random_prompts([50, 50, 50], seed=6), 4)
    _, again = greedy(backend, prompts, 4)
    assert torch.equal(first, again)


def test_logits(backend: HfBackend) -> None:
    logits_BV = backend.prefill(random_prompts([3, 5]))
    assert (logits_BV.shape, logits_BV.dtype) == ((2, VOCAB), torch.float32)
    assert not logits_BV.requires_grad


def test_only_the_last_column_goes_through_the_head(backend: HfBackend) -> None:
    shapes: list[tuple[int, ...]] = []
    handle = backend._model.lm_head.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    backend.prefill(random_prompts([30, 12]))
    handle.remove()
    assert shapes == [(2, 1, 32)]


def test_the_whole_context_can_be_used_and_no_more(backend: HfBackend) -> None:
    prompts = random_prompts([CONTEXT - 3, 1])
    tokens, _ = greedy(backend, prompts, 4)
    assert tokens == generate(backend, prompts, 4)
    backend.prefill(random_prompts([CONTEXT - 1]))
    backend.decode([1])
    with pytest.raises(ValueError, match="filled all 64 columns"):
        backend.decode([1])


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ([], "0 prompts; allowed are 1 to 8"),
        ([[1]] * 9, "9 prompts; allowed are 1 to 8"),
        ([[1], []], "a prompt of 0 tokens"),
        ([[1] * 65], "a prompt of 65 tokens; allowed: 1 to 64"),
        ([[1], [5, 100]], "outside 0 to 99"),
        ([[-1]], "outside 0 to 99"),
    ],
)
def test_prefill_limits(backend: HfBackend, prompts: Prompts, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        backend.prefill(prompts)
    assert backend.prefill([[1]]).shape == (1, VOCAB)  # nothing had run


@pytest.mark.parametrize(
    ("token_ids", "told"), [([1], "1 tokens for 2 rows"), ([1, 100], "outside 0 to 99"), ([-1, 1], "outside")]
)
def test_decode_limits(backend: HfBackend, token_ids: list[int], told: str) -> None:
    expected = [backend.prefill([[1], [2, 3]]), backend.decode([5, 6])][1].clone()
    backend.reset()
    backend.prefill([[1], [2, 3]])
    with pytest.raises(ValueError, match=told):
        backend.decode(token_ids)
    assert torch.equal(backend.decode([5, 6]), expected)  # nothing had run


def test_order_of_calls(backend: HfBackend) -> None:
    with pytest.raises(RuntimeError, match="prefill first"):
        backend.decode([1])
    backend.prefill([[1]])
    with pytest.raises(RuntimeError, match="reset first"):
        backend.prefill([[1]])
    backend.reset()
    backend.reset()
    backend.prefill([[1]])


@pytest.mark.parametrize(
    ("error", "expected", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            BatchLost,
            "the GPU ran out of memory: (reading the prompts|decoding)$",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), BatchLost, "ran out of memory"),
        (RuntimeError("CUDA error: device-side assert triggered\nmore"), BackendDead, "device-side assert"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when"), BackendDead, "EXECUTION_FAILED"),
        (torch.AcceleratorError("an illegal memory access"), BackendDead, "illegal memory access"),
        (
            RuntimeError("shape '[3]' is invalid: /secret/path"),
            BatchLost,
            "^the model failed: (reading the prompts|decoding)$",
        ),
    ],
)
@pytest.mark.parametrize("call", ["prefill", "decode"])
def test_failures(
    backend: HfBackend,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: Exception,
    expected: type[Exception],
    told: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    if call == "decode":
        backend.prefill([[1, 2]])
    with monkeypatch.context() as patch:
        patch.setattr(backend._model.transformer, "forward", fail)
        with pytest.raises(expected, match=told):
            backend.decode([1]) if call == "decode" else backend.prefill([[1, 2]])
    with pytest.raises(RuntimeError, match="no batch is running"):
        backend.decode([1])
    backend.reset()
    assert backend.prefill([[1, 2]]).isfinite().all()


# --- loading


def test_loads_as_float32_on_a_cpu_and_warms_up(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="gptj_serve"):
        backend = load_hf(checkpoint, CPU)
    assert backend._model.dtype == torch.float32
    assert backend.limits == Limits(max_batch_size=8, max_context=64, vocab_size=100)
    events = [record.fields["event"] for record in caplog.records if hasattr(record, "fields")]
    assert events == ["model_loaded", "warmed_up"]
    assert backend.prefill([[1]]).shape == (1, VOCAB)  # the warm-up left nothing behind


@pytest.mark.parametrize(("asked", "expected"), [(2, 2), (64, 64), (10_000, 64)])
def test_the_context_is_the_models_at_most(checkpoint: Checkpoint, asked: int, expected: int) -> None:
    backend = load_hf(checkpoint, CPU, max_batch_size=1, max_context=asked)
    assert (backend.limits.max_batch_size, backend.limits.max_context) == (1, expected)


def test_warm_up_runs_a_prompt_and_a_step(backend: HfBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    prefill, decode = backend.prefill, backend.decode
    monkeypatch.setattr(backend, "prefill", lambda prompts: calls.append(prompts) or prefill(prompts))
    monkeypatch.setattr(backend, "decode", lambda ids: calls.append(ids) or decode(ids))
    warm_up(backend)
    assert calls == [[[0, 0], [0]], [0, 0]]


def test_damaged_weights_stop_the_start(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(write_model(tmp_path))
    model = load_model(checkpoint, CPU, torch.float32)
    model.transformer.ln_f.bias[3] = float("nan")
    with pytest.raises(StartupError, match="not finite numbers"):
        warm_up(HfBackend(model, Limits(2, 64, 100)))


def test_a_warm_up_that_fails_stops_the_start(backend: HfBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend._model.transformer, "forward", fail)
    with pytest.raises(StartupError, match="the warm-up failed: the GPU ran out of memory"):
        warm_up(backend)


def test_rows_that_fit(checkpoint: Checkpoint) -> None:
    gpt_j = replace(checkpoint, architecture=read_architecture({"model_type": "gptj"}, Path("config.json")))
    one_row = row_bytes(gpt_j, 2048)
    cache_bytes = 458_752 * 2048
    scores_bytes = 16 * 2048 * 2048 * 4
    assert one_row == cache_bytes * 3 // 2 + scores_bytes * 3
    assert [rows_that_fit(num * one_row, one_row) for num in (0, 1, 3, 8, 100)] == [1, 1, 3, 8, 8]


def test_the_batch_on_a_gpu_is_what_its_free_memory_holds(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes = 5 * row_bytes(checkpoint, 64)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_bytes, free_bytes))
    assert hf._auto_batch_size(checkpoint, torch.device("cuda"), 64) == 5
    assert hf._auto_batch_size(checkpoint, CPU, 64) == 8
