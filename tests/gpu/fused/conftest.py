"""The kernel library, each way that it is built."""

import os
from pathlib import Path

import pytest
import torch

from gptj_serve.engine.fused.kernels.library import compile_library, find_library, find_nvcc


@pytest.fixture(scope="session", params=["native", "7.5 as PTX", "no tensor cores"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for this GPU, the one for a T4, which the driver translates, and what a V100 computes."""
    major, minor = torch.cuda.get_device_capability()
    if request.param == "native":
        return find_library(os.environ, [f"{major}.{minor}"])
    nvcc = find_nvcc(os.environ)
    assert nvcc is not None
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    if request.param == "7.5 as PTX":
        compile_library(nvcc, ["7.5+PTX"], path)
    else:
        compile_library(nvcc, [f"{major}.{minor}"], path, defines=["FUSED_NO_MMA"])
    return path
