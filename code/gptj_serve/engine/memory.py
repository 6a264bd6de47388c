"""Checks that there is room for the model on the GPU or in the host's memory, before anything is read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from gptj_serve.engine.device_errors import is_out_of_memory
from gptj_serve.errors import StartupError
from gptj_serve.host.cgroup import memory_limit_bytes

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """A GPU's name and its memory, in bytes."""

    gpu: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The machine's memory, in bytes.

    Attributes:
        available_bytes: How much processes can still take without swapping.
        total_bytes: The whole memory.
        limit_bytes: How much the container may use; None without a limit.
    """

    available_bytes: int
    total_bytes: int
    limit_bytes: int | None

    @property
    def usable_bytes(self) -> int:
        """The smaller of what is available and what the container may use."""
        limit = self.available_bytes if self.limit_bytes is None else self.limit_bytes
        return min(self.available_bytes, limit)


@contextmanager
def room_for_weights(
    needs: Mapping[str, int], device: torch.device, host_needs: Mapping[str, int] | None = None
) -> Iterator[None]:
    """Check the memory before the work inside, and report it in the same way if it runs out on the way.

    Args:
        needs: How many bytes the work inside takes on the device, by what they are for.
        device: The device.
        host_needs: How many bytes it takes besides in the host's memory, whatever the device.

    Raises:
        StartupError: The GPU, the machine or the container has too little memory.
    """
    needed_bytes, on_host = sum(needs.values()), dict(host_needs or {})
    if device.type == "cuda":
        check_gpu_memory(needed_bytes, _gpu_memory(device))
    else:
        on_host = {**needs, **on_host}
    check_host_memory(on_host, host_memory())
    try:
        yield
    except RuntimeError as error:
        # something else took memory after the check
        if device.type == "cuda" and is_out_of_memory(error):
            raise _too_little_memory(needed_bytes, _gpu_memory(device)) from error
        if "can't allocate memory" in str(error):
            raise _too_little_host_memory(on_host, host_memory()) from error
        raise


def weights_need(num_weights: int, dtype: torch.dtype) -> dict[str, int]:
    """How many bytes weights of a type take, with the arithmetic, for `room_for_weights`."""
    return {f"weights {num_weights} * {dtype.itemsize} bytes =": num_weights * dtype.itemsize}


def check_gpu_memory(needed_bytes: int, memory: GpuMemory) -> None:
    """Refuse to load what does not fit.

    Raises:
        StartupError: The message names the GPU, what is needed and what is free.
    """
    if needed_bytes > memory.free_bytes:
        raise _too_little_memory(needed_bytes, memory)


def host_memory() -> HostMemory:
    """The machine's memory and the container's limit at present; the page cache counts as available."""
    memory = psutil.virtual_memory()
    return HostMemory(memory.available, memory.total, memory_limit_bytes())


def check_host_memory(needs: Mapping[str, int], memory: HostMemory) -> None:
    """Refuse what does not fit: the kernel would kill the process, or read from the disk without end.

    Args:
        needs: How many bytes are needed, by what they are for.
        memory: The memory.

    Raises:
        StartupError: The message says what is needed, for what, and what there is.
    """
    if sum(needs.values()) > memory.usable_bytes:
        raise _too_little_host_memory(needs, memory)


def _too_little_host_memory(needs: Mapping[str, int], memory: HostMemory) -> StartupError:
    needed = f"{sum(needs.values()) / GIB:.2f} GiB of memory"
    parts = " + ".join(f"{what} {num_bytes / GIB:.2f}" for what, num_bytes in needs.items())
    is_limited = memory.limit_bytes == memory.usable_bytes
    if is_limited:
        there = f"this container may use {memory.usable_bytes / GIB:.2f}"
        cure = "allow it more (docker run --memory)"
    else:
        there = f"{memory.available_bytes / GIB:.2f} of the machine's {memory.total_bytes / GIB:.2f} are free"
        cure = "end what else runs here, or take a machine with more"
    return StartupError(
        f"loading needs {needed} ({parts}), and {there}; {cure}; or a GPU, whose weights take half (FP16)"
    )


def _gpu_memory(device: torch.device) -> GpuMemory:
    return GpuMemory(torch.cuda.get_device_name(device), *torch.cuda.mem_get_info(device))


def _too_little_memory(needed_bytes: int, memory: GpuMemory) -> StartupError:
    return StartupError(
        f"{memory.gpu} has too little free memory: the weights need {needed_bytes / GIB:.2f} GiB, "
        f"{memory.free_bytes / GIB:.2f} GiB of {memory.total_bytes / GIB:.2f} GiB are free; "
        "use a larger GPU, or end the other processes that hold its memory"
    )
