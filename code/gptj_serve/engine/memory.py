"""Is there room for the weights: on the GPU, or in the container on a CPU. Asked before anything is read."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gptj_serve.cgroup import memory_limit_bytes
from gptj_serve.engine.device_errors import is_out_of_memory
from gptj_serve.errors import StartupError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """A GPU's name and its memory, in bytes."""

    gpu: str
    free_bytes: int
    total_bytes: int


@contextmanager
def room_for_weights(needed_bytes: int, device: torch.device) -> Iterator[None]:
    """Check the memory before the work inside, and say the same if it runs out on the way.

    Args:
        needed_bytes: What the work inside takes.
        device: Where it takes that.

    Raises:
        StartupError: The GPU or the container has too little memory.
    """
    if device.type == "cuda":
        check_gpu_memory(needed_bytes, _gpu_memory(device))
    else:
        check_host_memory(needed_bytes, memory_limit_bytes())
    try:
        yield
    except RuntimeError as error:
        if device.type == "cuda" and is_out_of_memory(error):
            # something took memory after the check
            raise _too_little_memory(needed_bytes, _gpu_memory(device)) from error
        raise


def check_gpu_memory(needed_bytes: int, memory: GpuMemory) -> None:
    """Refuse to load what cannot fit.

    Raises:
        StartupError: Names the GPU, what is needed and what is free.
    """
    if needed_bytes > memory.free_bytes:
        raise _too_little_memory(needed_bytes, memory)


def check_host_memory(needed_bytes: int, limit_bytes: int | None) -> None:
    """Refuse what the container's limit has no room for: the kernel would kill the process without a word.

    Raises:
        StartupError: Says what is needed and what is allowed.
    """
    if limit_bytes is not None and needed_bytes > limit_bytes:
        raise StartupError(
            f"this container may use {limit_bytes / GIB:.2f} GiB of memory, on the CPU the weights need "
            f"{needed_bytes / GIB:.2f} GiB; allow it more (docker run --memory)"
        )


def _gpu_memory(device: torch.device) -> GpuMemory:
    return GpuMemory(torch.cuda.get_device_name(device), *torch.cuda.mem_get_info(device))


def _too_little_memory(needed_bytes: int, memory: GpuMemory) -> StartupError:
    return StartupError(
        f"{memory.gpu} has too little free memory: the weights need {needed_bytes / GIB:.2f} GiB, "
        f"{memory.free_bytes / GIB:.2f} GiB of {memory.total_bytes / GIB:.2f} GiB are free; "
        "use a larger GPU, or end the other processes that hold its memory"
    )


def host_peak_bytes() -> int:
    """The process's largest resident size so far, mapped files included."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
