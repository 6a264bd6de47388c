"""The compiled kernels against Transformers, on a GPU: the demo model, and GPT-J-6B's shape.

A process holds one injected model, and the injection consumes the plain one. So each model is a process
of its own (this file as a script) that first takes the references, then injects and measures; what it
found comes back as JSON, and the tests judge it.

Judged is every logit along Transformers' own greedy path: prompt by prompt, and all prompts padded into
one batch. The truth is the same model in FP32; the kernels may err three times as much as Transformers
in FP16 does. Tokens have to be equal wherever the best two logits differ by more than what is allowed.
"""

import copy
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GPTJConfig, GPTJForCausalLM

import gptj_serve
from gptj_serve import demo
from gptj_serve.engine.failures import BatchLost
from gptj_serve.engine.scheduler import Limits
from gptj_serve.engine.static.backend import Backend
from gptj_serve.engine.static.deepspeed import backend as engine
from gptj_serve.engine.static.hf import HfBackend

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

CASES = ("demo", "gptj_6b")
GIB = 1 << 30
NUM_TOKENS = 20
MAX_RMS = 0.01
"""Root mean square of the error over that of the logits, against FP32: allowed whatever Transformers does."""

MAX_DELTA = 0.05
"""Largest difference of one logit to Transformers in FP16, in standard deviations of the row's logits."""


@pytest.mark.parametrize("case", CASES)
class TestParity:
    def test_logits(self, case: str) -> None:
        rows = found(case)["rows"]
        assert len(rows) == 8
        for row in rows:
            assert row["kernel_rms"] <= max(MAX_RMS, 3 * row["plain_rms"]), row
            assert row["max_delta"] <= MAX_DELTA, row

    def test_tokens(self, case: str) -> None:
        rows = found(case)["rows"]
        assert [row for row in rows if row["num_wrong"]] == []
        assert sum(row["num_clear"] for row in rows) >= 0.4 * NUM_TOKENS * len(rows)

    def test_the_hf_engine_agrees_as_well(self, case: str) -> None:
        rows = found(case)["hf_rows"]
        assert len(rows) == 8
        assert [row for row in rows if row["num_wrong"] or row["max_delta"] > MAX_DELTA] == []

    def test_limits_are_refused_and_the_backend_goes_on(self, case: str) -> None:
        max_context = found(case)["max_context"]
        too_long = f"{max_context + 1} tokens; the context holds {max_context}"
        rows = "5 rows; a batch has 1 to 4"
        assert found(case)["refused"] == {"rows": rows, "prompt": too_long, "decode": too_long}
        assert found(case)["after_refusals"] <= 1e-3

    def test_batch_that_fails_half_way_leaves_no_trace(self, case: str) -> None:
        assert found(case)["after_failure"] <= 1e-3


def test_injection_never_holds_the_model_twice() -> None:
    # a block of 0.375 GiB twice more, transposed and in place, and DeepSpeed's buffers of 0.44 GiB:
    # less than the workspace of one long row, which comes after it
    memory = found("gptj_6b")["injection"]
    assert memory["peak_gib"] <= 1.25, memory
    assert memory["kept_gib"] <= 0.05, memory


def test_speed_of_one_row() -> None:
    speed = found("gptj_6b")["ms_per_token"]
    print(json.dumps({"ms_per_token": speed}))
    assert speed["direct"] < speed["forward"] * 1.02


def found(case: str) -> dict[str, Any]:
    """What the case measured."""
    exit_code, result = run_case(case)
    assert exit_code == 0, f"{case}: exit code {exit_code}, see its output"
    return result


@cache
def run_case(case: str) -> tuple[int, dict[str, Any]]:
    """Run the case in a process of its own; once, also if it fails."""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"deepspeed_gpu_{case}_{os.getpid()}.json"
    code = Path(gptj_serve.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": f"{code}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment.pop("DS_ACCELERATOR", None)
    started_s = time.monotonic()
    exit_code = subprocess.run([sys.executable, __file__, case, str(path)], env=environment).returncode
    result: dict[str, Any] = json.loads(path.read_text()) if exit_code == 0 else {}
    path.unlink(missing_ok=True)
    print(f"{case}: {time.monotonic() - started_s:.0f} s", json.dumps(result, indent=1))
    return exit_code, result


def measure(case: str) -> dict[str, Any]:
    """What the tests judge; runs in its own process."""
    plain16, plain32 = models(case)
    long = 1900 if case == "demo" else 500
    prompts = [prompt(plain16, length) for length in (long, 50, 7, 1)]
    paths = [reference(plain16, plain32, ids) for ids in prompts]
    del plain32
    torch.cuda.empty_cache()
    max_context = 2048 if case == "demo" else 1024
    hf_rows = measure_hf(plain16, paths, max_context)
    injection = watch_injection()
    started_s = time.monotonic()
    backend = engine.load_deepspeed(plain16, 4, max_context)
    result: dict[str, Any] = {"load_s": time.monotonic() - started_s, "max_context": max_context}
    result["injection"] = injection
    result["hf_rows"] = hf_rows
    singles = [follow(backend, [path])[0] for path in paths]
    together = follow(backend, paths)
    result["rows"] = [judge(path, logits) for path, logits in zip(paths * 2, singles + together, strict=True)]
    result["refused"] = refusals(backend, max_context)
    result["after_refusals"] = drift(singles[3], follow(backend, paths[3:])[0])
    fail_half_way(backend)
    result["after_failure"] = drift(singles[3], follow(backend, paths[3:])[0])
    result["ms_per_token"] = speeds(backend, plain16)
    return result


def measure_hf(
    plain16: GPTJForCausalLM, paths: list[dict[str, Any]], max_context: int
) -> list[dict[str, Any]]:
    """The `hf` engine on the same paths, alone and padded into one batch."""
    backend = HfBackend(plain16, Limits(4, max_context, plain16.config.vocab_size))
    logits = [follow(backend, [path])[0] for path in paths] + follow(backend, paths)
    return [judge(path, one) for path, one in zip(paths * 2, logits, strict=True)]


def models(case: str) -> tuple[GPTJForCausalLM, GPTJForCausalLM]:
    """The same model in FP16 and in FP32, both on the GPU."""
    if case == "demo":
        plain16 = GPTJForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float16).eval().to("cuda")
        plain16.requires_grad_(False)
        return plain16, copy.deepcopy(plain16).float()
    torch.manual_seed(0)
    with torch.device("cuda"):
        plain32 = GPTJForCausalLM(GPTJConfig()).eval().requires_grad_(False)
    for name, parameter in plain32.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.02)  # zeros would hide a bias that is left out
        parameter.copy_(parameter.half())
    return copy.deepcopy(plain32).half(), plain32


def prompt(model: GPTJForCausalLM, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, model.config.vocab_size, (length,), generator=generator).tolist()


@torch.inference_mode()
def reference(plain16: GPTJForCausalLM, plain32: GPTJForCausalLM, ids: list[int]) -> dict[str, Any]:
    """Transformers' greedy path in FP16, and the logits of every step on it in both precisions."""
    cache = DynamicCache(config=plain16.config)
    added: list[int] = []
    for _ in range(NUM_TOKENS):
        fresh = torch.tensor([[added[-1]] if added else ids], device="cuda")
        added.append(int(plain16(fresh, past_key_values=cache, use_cache=True).logits[0, -1].argmax()))
    path = torch.tensor([ids + added], device="cuda")
    steps = slice(len(ids) - 1, -1)
    logits = [model(path, use_cache=False).logits[0, steps].float() for model in (plain16, plain32)]
    return {"prompt": ids, "added": added, "plain16": logits[0], "plain32": logits[1]}


def follow(backend: Backend, paths: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The backend's logits along the paths, one tensor (steps, vocabulary) a row."""
    steps = [backend.prefill([path["prompt"] for path in paths]).clone()]
    for token_ids in list(zip(*(path["added"] for path in paths), strict=True))[:-1]:
        steps.append(backend.decode(token_ids).clone())
    backend.reset()
    return [torch.stack([logits_BV[row] for logits_BV in steps]) for row in range(len(paths))]


def judge(path: dict[str, Any], kernel: torch.Tensor) -> dict[str, Any]:
    plain, truth = path["plain16"], path["plain32"]
    std = plain.std(-1, keepdim=True)
    best_two = plain.topk(2).values / std
    is_clear = best_two[:, 0] - best_two[:, 1] > 2 * MAX_DELTA
    is_wrong = (kernel.argmax(-1) != plain.argmax(-1)) & is_clear
    return {
        "prompt": len(path["prompt"]),
        "kernel_rms": drift(truth, kernel),
        "plain_rms": drift(truth, plain),
        "max_delta": float(((kernel - plain) / std).abs().max()),
        "num_clear": int(is_clear.sum()),
        "num_wrong": int(is_wrong.sum()),
    }


def drift(expected: torch.Tensor, got: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def watch_injection() -> dict[str, float]:
    """Measure the memory of the injection alone, beyond what was there before; filled in when it runs."""
    memory: dict[str, float] = {}
    inject = engine.inject

    def watched(*args: Any) -> Any:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        started_s = time.monotonic()
        blocks = inject(*args)
        torch.cuda.synchronize()
        memory["seconds"] = time.monotonic() - started_s
        memory["peak_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB
        memory["kept_gib"] = (torch.cuda.memory_allocated() - before) / GIB
        return blocks

    engine.inject = watched
    return memory


def refusals(backend: engine.DeepSpeedBackend, max_context: int) -> dict[str, str]:
    refused = {
        "rows": refusal(lambda: backend.prefill([[1]] * 5)),
        "prompt": refusal(lambda: backend.prefill([[1] * (max_context + 1)])),
    }
    backend.prefill([[1] * max_context])
    refused["decode"] = refusal(lambda: backend.decode([1]))
    backend.reset()
    return refused


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "not refused"


def fail_half_way(backend: engine.DeepSpeedBackend) -> None:
    healthy = backend._run_blocks

    def broken(*_: Any) -> None:
        raise RuntimeError("on purpose")

    backend.prefill([[1, 2, 3]])
    backend._run_blocks = (*healthy[:2], broken, *healthy[3:])
    try:
        backend.decode([4])
        raise AssertionError("the failure did not show")
    except BatchLost:
        backend._run_blocks = healthy
        backend.reset()


def speeds(backend: engine.DeepSpeedBackend, model: GPTJForCausalLM) -> dict[str, float]:
    """Milliseconds a greedy token of one row after 200 others: our calls, and the blocks' own forward."""
    direct = backend._run_blocks
    forward = tuple(
        lambda x_BTD, mask, block=block: block.forward(x_BTD, attention_mask=mask)
        for block in model.transformer.h
    )
    measured = {}
    for name, run_blocks in (("direct", direct), ("forward", forward), ("direct", direct)):
        backend._run_blocks = run_blocks
        measured[name] = ms_per_token(backend)
    return measured


def ms_per_token(backend: engine.DeepSpeedBackend, num_tokens: int = 100) -> float:
    token_ids = backend.prefill([[1] * 200]).argmax(-1).tolist()
    for step in range(num_tokens + 10):
        if step == 10:
            started_s = time.perf_counter()
        token_ids = backend.decode(token_ids).argmax(-1).tolist()
    elapsed_s = time.perf_counter() - started_s
    backend.reset()
    return round(elapsed_s * 1000 / num_tokens, 3)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    Path(sys.argv[2]).write_text(json.dumps(measure(sys.argv[1])))
