"""Which models fit which GPUs, with the engine's own arithmetic."""

import dataclasses

import pytest
import torch

from gptj_serve.aws.machines.fit import (
    GPT_J_6B,
    fits,
    fitting_types,
    longest_context,
    need_of,
    why_it_does_not_fit,
)
from gptj_serve.aws.machines.instances import A10G, T4, Gpu, InstanceType, all_gpu_instances, find_instance
from gptj_serve.engine.fused import memory_needs
from gptj_serve.engine.fused.kernels.protocol import make_scratch
from gptj_serve.engine.fused.layout import BLOCK_SIZE

TWICE = dataclasses.replace(GPT_J_6B, num_layers=56)
"""A GPT-J of 12 billion parameters."""


def instance(name: str) -> InstanceType:
    found = find_instance(name)
    assert found is not None
    return found


def test_gpt_j_6b_fits_every_gpu_of_the_table() -> None:
    assert all(one.gpu and fits(GPT_J_6B, one.gpu, 2048, None) for one in all_gpu_instances())


def test_what_it_needs_on_a_t4() -> None:
    need = need_of(GPT_J_6B, T4, 2048, None)
    assert need.weights_bytes == pytest.approx(12.10e9, rel=0.001)
    assert need.cache_bytes == 2048 * 458_752
    assert 1.0 < need.working_bytes / memory_needs.GIB < 1.3
    assert need.total_bytes / memory_needs.GIB < T4.memory_gib - 0.5


def test_scratch_memory_is_what_the_engine_takes() -> None:
    architecture = dataclasses.replace(
        GPT_J_6B, num_layers=2, num_heads=4, head_dim=64, width=256, inner=1024, vocab_size=3000
    )
    scratch = make_scratch(architecture, torch.empty(0, dtype=torch.float16), 512, 64)
    taken = sum(getattr(scratch, field.name).nbytes for field in dataclasses.fields(scratch))
    assert taken == memory_needs.scratch_bytes(architecture, 512, 64)


def test_what_does_not_fit_is_told_with_what_would() -> None:
    told = why_it_does_not_fit(TWICE, instance("ml.g4dn.2xlarge"), 2048, None)
    assert told is not None
    wrong, right = told
    assert "does not fit ml.g4dn.2xlarge" in wrong
    assert "weights in FP16 21.8" in wrong
    assert "ml.g6e.xlarge" in right
    assert "GPTJ_MAX_CONTEXT" not in right  # no context would do
    assert "g5" not in right


def test_a_shorter_context_may_do() -> None:
    gpu = Gpu("small", 13.2, 300, "7.5")
    small = dataclasses.replace(instance("ml.g4dn.2xlarge"), gpu=gpu)
    told = why_it_does_not_fit(GPT_J_6B, small, 2048, None)
    assert told is not None
    shorter = longest_context(GPT_J_6B, gpu, None)
    assert 0 < shorter < 2048
    assert f"GPTJ_MAX_CONTEXT={shorter} (instead of 2048)" in told[1]
    assert fits(GPT_J_6B, gpu, shorter, None)
    assert not fits(GPT_J_6B, gpu, shorter + BLOCK_SIZE, None)


def test_smaller_batches_need_less() -> None:
    gpu = Gpu("small", 13.2, 300, "7.5")
    assert longest_context(GPT_J_6B, gpu, 8) > longest_context(GPT_J_6B, gpu, 64)


def test_what_nothing_can_hold() -> None:
    huge = dataclasses.replace(GPT_J_6B, num_layers=28 * 14)
    told = why_it_does_not_fit(huge, instance("ml.p5en.48xlarge"), 2048, None)
    assert told is not None
    assert told[1] == "no instance type has such a GPU"


def test_types_that_fit_are_the_smallest_of_each_family() -> None:
    names = [one.name for one in fitting_types(GPT_J_6B, 2048, None)]
    assert names[:4] == ["ml.g4dn.xlarge", "ml.g5.xlarge", "ml.g6.xlarge", "ml.g6e.xlarge"]
    assert "ml.p4d.24xlarge" in names
    assert "ml.p3.2xlarge" not in names  # AWS retires it


def test_cpus_are_not_asked() -> None:
    assert why_it_does_not_fit(TWICE, instance("ml.m5.large"), 2048, None) is None


def test_longest_context_is_never_more_than_the_models() -> None:
    assert longest_context(GPT_J_6B, A10G, None) == 2048
