"""DeepSpeed's kernels, compiled by the Dockerfile where there is a CUDA compiler and no GPU."""

import os
import re

import pytest
from container import build, run_in

pytestmark = [pytest.mark.docker, pytest.mark.timeout(7200)]

ARCHS = "7.5;9.0+PTX"
BUILD_STAGE, IMAGE = "gptj-serve:test-cuda-build", "gptj-serve:test-cuda"


@pytest.fixture(scope="module")
def cuda_image() -> str:
    """The image on a base with CUDA; see cuda.Dockerfile."""
    base = os.environ.get("TEST_CUDA_BASE_IMAGE")
    if base is None:
        pytest.skip("TEST_CUDA_BASE_IMAGE names no image with CUDA and nvcc")
    kernels = ("--build-arg", f"KERNEL_ARCHS={ARCHS}")
    build(BUILD_STAGE, "--target", "build", *kernels, base=base)
    return build(IMAGE, *kernels, base=base)


def test_kernels_are_there_for_every_architecture_asked_for(cuda_image: str) -> None:
    assert cuda_image == IMAGE
    find = "find /opt/venv -name 'transformer_inference_op*.so'"
    listed = run_in(BUILD_STAGE, "sh", "-c", f"cuobjdump --list-elf --list-ptx $({find})")
    assert set(re.findall(r"sm_\d+\.cubin", listed)) == {"sm_75.cubin", "sm_90.cubin"}
    assert set(re.findall(r"sm_\d+\.ptx", listed)) == {"sm_90.ptx"}


def test_kernels_load_without_being_compiled(cuda_image: str) -> None:
    """As at start, but for the GPU: DeepSpeed takes the module of the image and has every operator."""
    code = (
        "import torch; from deepspeed.ops.op_builder import InferenceBuilder;"
        "from gptj_serve.engine.deepspeed_kernels import check_extension;"
        "kernels = InferenceBuilder().load(verbose=False); check_extension(kernels, torch.float16);"
        "print(kernels.__file__)"
    )
    # deepspeed looks for a GPU unless it is told what it will find
    where = run_in(cuda_image, "env", "DS_ACCELERATOR=cuda", "python", "-c", code)
    assert "/opt/venv/" in where.splitlines()[-1]
