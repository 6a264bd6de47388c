"""What is said of a GPU that cannot be used, and how many threads compute."""

import pytest
import torch

from gptj_serve.engine import machine
from gptj_serve.engine.machine import limit_threads, no_gpu, unsupported, unusable

CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (8, 9), (9, 0)])
def test_gpus_that_pytorch_has_kernels_for(capability: tuple[int, int]) -> None:
    assert unsupported("GPU", capability, CUDA_12_6) is None


@pytest.mark.parametrize(("capability", "said"), [((10, 0), "10.0"), ((3, 7), "3.7")])
def test_gpus_that_it_has_none_for(capability: tuple[int, int], said: str) -> None:
    trouble = unsupported("NVIDIA B200", capability, CUDA_12_6)
    assert trouble is not None
    assert f"NVIDIA B200 has compute capability {said}" in trouble
    assert "sm_90" in trouble


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("compute_90", (12, 0), True),  # PTX, which the driver compiles
        ("compute_90", (8, 9), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_100", (10, 3), True),
    ],
)
def test_architectures(architecture: str, capability: tuple[int, int], runs: bool) -> None:
    assert (unsupported("GPU", capability, [architecture]) is None) == runs


def test_nothing_is_known_of_a_pytorch_that_lists_none() -> None:
    assert unsupported("GPU", (9, 0), []) is None


def test_a_driver_that_is_too_old_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_why_cuda_does_not_start", lambda: TOO_OLD)
    trouble = unusable(["/dev/nvidia0"], "12.6", "470.256.02")
    assert trouble is not None
    assert "driver 470.256.02 is too old for this PyTorch's CUDA 12.6" in trouble
    assert "InferenceAmiVersion" in trouble


def test_another_failure_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_why_cuda_does_not_start", lambda: "Error 802: system not yet initialized")
    trouble = unusable(["/dev/nvidia0"], "12.6", None)
    assert trouble is not None
    assert "Error 802" in trouble
    assert "/dev/nvidia0" in trouble


def test_no_gpu_and_no_cuda_are_no_trouble() -> None:
    assert unusable([], "12.6", "550.1") is None
    assert unusable(["/dev/nvidia0"], None, "550.1") is None
    assert no_gpu([], "12.6") == "no NVIDIA GPU is visible"
    assert no_gpu(["/dev/nvidia0"], None) == "this PyTorch is built without CUDA"


@pytest.mark.parametrize(
    ("limit", "env", "threads"),
    [(1.0, {}, 1), (0.5, {}, 1), (None, {}, 2), (64.0, {}, 2), (1.0, {"OMP_NUM_THREADS": "2"}, 2)],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, env: dict[str, str], threads: int
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "cpu_limit", lambda: limit)
    torch.set_num_threads(2)
    try:
        limit_threads(env)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
