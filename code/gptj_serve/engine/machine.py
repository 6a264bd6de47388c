"""Looks at what this machine offers to an engine: its GPU, whether PyTorch can use it, and its CPUs."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from gptj_serve.engine.choose import Machine
from gptj_serve.engine.fused.kernels import library as compiler
from gptj_serve.engine.static.deepspeed.kernels import kernels_missing
from gptj_serve.errors import first_line
from gptj_serve.host.cgroup import cpu_limit
from gptj_serve.host.driver import driver_version

HOW_TO_RUN_ON_THE_CPU = "an empty CUDA_VISIBLE_DEVICES runs on the CPU"


def look_at_machine(env: Mapping[str, str]) -> Machine:
    """Look for a GPU, and check whether it can be used.

    Args:
        env: Has ``CUDA_VISIBLE_DEVICES``, which hides GPUs, and is used to find a compiler.
    """
    cuda, driver = torch.version.cuda, driver_version()
    if not _cuda_is_available():
        devices = [] if _hides_gpus(env) else sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))
        return Machine(None, (0, 0), None, None, no_gpu(devices, cuda), unusable(devices, cuda, driver))
    gpu, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    trouble = unsupported(gpu, capability, torch.cuda.get_arch_list())
    return Machine(gpu, capability, kernels_missing(), compiler.kernels_missing(env), trouble=trouble)


def describe(machine: Machine) -> dict[str, str | float | None]:
    """Fields for the log: the GPU, its driver and CUDA, or the number of threads without a GPU."""
    fields: dict[str, str | float | None] = {"driver": driver_version(), "cuda": torch.version.cuda}
    if machine.gpu is None:
        return {"gpu": None, **fields, "threads": torch.get_num_threads()}
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    return {
        "gpu": machine.gpu,
        "gpu_memory_gib": round(total_bytes / (1 << 30), 1),
        "compute_capability": ".".join(map(str, machine.capability)),
        **fields,
    }


def limit_threads(env: Mapping[str, str]) -> None:
    """Use no more threads than the container may use CPUs; PyTorch counts the host's, which would queue."""
    limit = cpu_limit()
    if limit is not None and not env.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, min(torch.get_num_threads(), math.ceil(limit))))


def no_gpu(devices: Sequence[str], cuda: str | None) -> str:
    """Why there is no GPU to use if nothing is wrong; the arguments are those of `unusable`."""
    return "this PyTorch is built without CUDA" if devices and cuda is None else "no NVIDIA GPU is visible"


def unusable(devices: Sequence[str], cuda: str | None, driver: str | None) -> str | None:
    """What is wrong if there are GPUs, but CUDA cannot be used; None if nothing is.

    Args:
        devices: Device files of the GPUs that are not hidden on purpose.
        cuda: CUDA version that PyTorch is built for; None for a build without CUDA.
        driver: The host's driver.
    """
    if not devices or cuda is None:
        return None
    said = _why_cuda_does_not_start()
    if "too old" in said:
        return (
            f"the NVIDIA driver{f' {driver}' if driver else ''} is too old for this PyTorch's CUDA {cuda}: "
            f"update the host's driver (on SageMaker: a newer InferenceAmiVersion); {HOW_TO_RUN_ON_THE_CPU}"
        )
    return f"there is a GPU ({devices[0]}), but CUDA does not start: {said}; {HOW_TO_RUN_ON_THE_CPU}"


def unsupported(gpu: str, capability: tuple[int, int], architectures: Iterable[str]) -> str | None:
    """What is wrong if PyTorch has no kernels for the GPU; None if it has.

    Args:
        gpu: The GPU's name.
        capability: The GPU's compute capability.
        architectures: What ``torch.cuda.get_arch_list()`` gives: "sm_80", "compute_90".
    """
    known = list(architectures)
    if not known or any(_runs_on(name, capability) for name in known):
        return None
    have = ".".join(map(str, capability))
    return (
        f"{gpu} has compute capability {have}, for which this PyTorch has no kernels ({', '.join(known)}): "
        f"use another PyTorch or GPU; {HOW_TO_RUN_ON_THE_CPU}"
    )


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
    if not found:
        return False
    kind, built_for, is_exact = found[1], (int(found[2]), int(found[3])), bool(found[4])
    if is_exact:
        return built_for == capability
    if kind == "compute":  # the driver compiles it for newer GPUs
        return built_for <= capability
    return built_for[0] == capability[0] and built_for[1] <= capability[1]


def _cuda_is_available() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # we say the same ourselves, once
        return torch.cuda.is_available()


def _why_cuda_does_not_start() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "no reason given"


def _hides_gpus(env: Mapping[str, str]) -> bool:
    return env.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
