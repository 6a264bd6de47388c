"""The image on a base with CUDA, without a GPU: the kernels that it compiles, and what it says of drivers."""

import contextlib
import os
import re
from pathlib import Path

import pytest

from support.container import DEMO, Container, build, docker, run_in

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


@pytest.mark.parametrize(
    "find", ["/opt/venv -name 'transformer_inference_op*.so'", "/opt/gptj-serve -name libfused.so"]
)
def test_kernels_are_there_for_every_architecture_asked_for(cuda_image: str, find: str) -> None:
    assert cuda_image == IMAGE
    listed = run_in(BUILD_STAGE, "sh", "-c", f"cuobjdump --list-elf --list-ptx $(find {find})")
    assert set(re.findall(r"sm_\d+\.cubin", listed)) == {"sm_75.cubin", "sm_90.cubin"}
    assert set(re.findall(r"sm_\d+\.ptx", listed)) == {"sm_90.ptx"}


def test_kernels_load_without_being_compiled(cuda_image: str) -> None:
    """As at start, but for the GPU: DeepSpeed takes the module of the image and has every operator."""
    code = (
        "import torch; from deepspeed.ops.op_builder import InferenceBuilder;"
        "from gptj_serve.engine.static.deepspeed.kernels import check_extension;"
        "kernels = InferenceBuilder().load(verbose=False); check_extension(kernels, torch.float16);"
        "print(kernels.__file__)"
    )
    # deepspeed looks for a GPU unless it is told what it will find
    where = run_in(cuda_image, "env", "DS_ACCELERATOR=cuda", "python", "-c", code)
    assert "/opt/venv/" in where.splitlines()[-1]


def test_the_fused_engines_kernels_load_where_they_will_run(cuda_image: str) -> None:
    code = (
        "import os; from gptj_serve.engine.fused.kernels import cuda as cuda_kernels, library as compiler;"
        "library = compiler.find_library(os.environ, ['9.0']);"
        "print(library, cuda_kernels.open_library(library).fused_error(0).decode())"
    )
    found = run_in(cuda_image, "python", "-c", code)
    assert found == "/opt/gptj-serve/gptj_serve/engine/fused/kernels/libfused.so no error\n"
    assert "The fused engine's kernels load" in run_in(cuda_image, "python", "-m", "gptj_serve.self_check")


FAKE_DRIVER = (
    "int cuInit(unsigned f) {{ return {code}; }} int cuDriverGetVersion(int *v) {{ *v = 11040; return 0; }}"
)
GPU = ("--device", "/dev/null:/dev/nvidia0")
"""A device file of that name is what tells that there is a GPU."""


def fake_driver(folder: Path, code: int) -> tuple[str, ...]:
    """A driver library of CUDA 11.4 whose initialisation returns a code; options that mount it."""
    folder.mkdir()
    (folder / "cuda.c").write_text(FAKE_DRIVER.format(code=code))
    compile_ = "gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o /fake/libcuda.so.1 /fake/cuda.c"
    docker("run", "--rm", "--volume", f"{folder}:/fake", "--entrypoint", "sh", BUILD_STAGE, "-c", compile_)
    return ("--volume", f"{folder}:/fake:ro")


def message(image: str, *options: str) -> str:
    """Why a container with the demo model does not start, once it has ended."""
    with contextlib.closing(Container(image, *options, *DEMO)) as container:
        assert container.wait_for_exit(60) == 1
        assert "Traceback" not in container.log
        (event,) = container.events("not_started")
        return str(event["message"])


@pytest.mark.parametrize("engine", ["auto", "deepspeed", "hf"])
def test_a_driver_that_is_too_old_stops_the_start(cuda_image: str, tmp_path: Path, engine: str) -> None:
    driver = fake_driver(tmp_path / "fake", code=0)
    environment = ("--env", "LD_LIBRARY_PATH=/fake", "--env", f"GPTJ_ENGINE={engine}")
    said = message(cuda_image, *GPU, *driver, *environment)
    assert said.startswith("the NVIDIA driver is too old for this PyTorch's CUDA ")


def test_a_gpu_without_a_driver_stops_the_start(cuda_image: str) -> None:
    said = message(cuda_image, *GPU)
    assert said.startswith("there is a GPU (/dev/nvidia0), but CUDA does not start: Found no NVIDIA driver")


def test_an_empty_cuda_visible_devices_means_the_cpu(cuda_image: str) -> None:
    with contextlib.closing(
        Container(cuda_image, *GPU, "--env", "CUDA_VISIBLE_DEVICES=", *DEMO)
    ) as container:
        container.wait_for("ready")
        assert container.events("engine_chosen")[0]["engine"] == "hf"


def test_no_gpu_where_one_is_expected(cuda_image: str) -> None:
    assert "no NVIDIA GPU is visible" in message(cuda_image, "--env", "GPTJ_ENGINE=deepspeed")


@pytest.mark.parametrize(("code", "starts"), [(0, True), (804, False)])
def test_the_trial_of_compatibility_libraries(
    cuda_image: str, tmp_path: Path, code: int, starts: bool
) -> None:
    """804: forward compatibility was attempted on a GPU that has none."""
    driver = fake_driver(tmp_path / "fake", code)
    ask = (
        "import os, pathlib; from gptj_serve.host.driver import cuda_starts;"
        " print(cuda_starts(os.environ, pathlib.Path('/fake')))"
    )
    answer = docker("run", "--rm", *driver, "--entrypoint", "python", cuda_image, "-c", ask)
    assert answer == f"{starts}\n"
