"""Classifies device failures: the batch is lost, or the process is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gptj_serve.engine.failures import BackendDead, BatchLost
from gptj_serve.errors import first_line

_DEVICE_MARKS = ("CUDA error", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS", "device-side assert")
_MEMORY_MARKS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory", "CUDA error: out of memory")


@contextmanager
def batch_errors(what: str) -> Iterator[None]:
    """Turn every failure of the work inside into `BatchLost` or `BackendDead`.

    When the device has run out of memory, the memory that PyTorch caches is released first. Kernels run after
    the call that started them has returned, so a CUDA error can show up in whatever waits for the device
    next: the sampler's transfer needs this as much as the model.

    Args:
        what: What was running, for the message; it reaches the client.
    """
    try:
        yield
    except (BatchLost, BackendDead):
        raise
    except Exception as error:
        raise _sorted(error, what) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device had no memory left, after which it still works."""
    return isinstance(error, torch.OutOfMemoryError) or any(mark in str(error) for mark in _MEMORY_MARKS)


def _sorted(error: Exception, what: str) -> Exception:
    if is_out_of_memory(error):
        torch.cuda.empty_cache()  # fragments that fit nothing are of no use to the next batch
        return BatchLost(f"the GPU ran out of memory: {what}")
    # after another CUDA error every later call of this process would fail as well
    if isinstance(error, torch.AcceleratorError) or any(mark in str(error) for mark in _DEVICE_MARKS):
        return BackendDead(f"{what}: {first_line(error)}")
    return BatchLost(f"the model failed: {what}")
