"""Loads a checkpoint's weights through Transformers, once, onto one device.

Transformers builds the model on the meta device and maps the files into memory, so weights of the
wanted type are never copied on the host: moving the model to a GPU reads them from the files, and on
a CPU the mapped pages are the weights. Weights of another type are converted one by one: one copy.
"""

import logging
import resource
import sys
import time
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.utils import logging as transformers_logging

from gptj_serve.cgroup import memory_limit_bytes
from gptj_serve.engine.checkpoint_files import SAFETENSORS, some
from gptj_serve.engine.device_errors import is_out_of_memory
from gptj_serve.engine.model_dir import Checkpoint
from gptj_serve.errors import StartupError

logger = logging.getLogger(__name__)

GIB = 1 << 30


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> GPTJForCausalLM:
    """Load the model, ready for inference.

    Args:
        checkpoint: What `gptj_serve.engine.model_dir.find_checkpoint` found.
        device: Where the weights go.
        dtype: Their type there: float16 on a GPU, float32 on a CPU as a rule.

    Returns:
        The model in evaluation mode, its parameters frozen.

    Raises:
        StartupError: The GPU or the container has too little memory, or the files changed since the check.
    """
    started_s = time.monotonic()
    if device.type == "cuda":
        check_gpu_memory(needed_bytes(checkpoint, dtype), _gpu_memory(device))
    else:
        check_host_memory(needed_bytes(checkpoint, dtype), memory_limit_bytes())
    try:
        model = _from_files(checkpoint, dtype)
        model.to(device)  # type: ignore[arg-type]  # its decorator hides that this is a method
    except RuntimeError as error:
        if device.type == "cuda" and is_out_of_memory(error):
            # something took memory after the check
            raise _too_little_memory(needed_bytes(checkpoint, dtype), _gpu_memory(device)) from error
        raise
    except (OSError, UnpicklingError) as error:
        raise StartupError(f"{checkpoint.directory}: changed since it was checked; not loaded") from error
    model.requires_grad_(False)
    _log(model, device, time.monotonic() - started_s)
    return model


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """A GPU's name and its memory, in bytes."""

    gpu: str
    free_bytes: int
    total_bytes: int


def needed_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Bytes that the loaded weights take, with the float32 rotary tables that every block keeps."""
    tables = checkpoint.n_layer * checkpoint.n_positions * checkpoint.rotary_dim * 4
    return checkpoint.num_weights * dtype.itemsize + tables


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


def _too_little_memory(needed_bytes: int, memory: GpuMemory) -> StartupError:
    return StartupError(
        f"{memory.gpu} has too little free memory: the weights need {needed_bytes / GIB:.2f} GiB, "
        f"{memory.free_bytes / GIB:.2f} GiB of {memory.total_bytes / GIB:.2f} GiB are free; "
        "use a larger GPU, or end the other processes that hold its memory"
    )


def _gpu_memory(device: torch.device) -> GpuMemory:
    return GpuMemory(torch.cuda.get_device_name(device), *torch.cuda.mem_get_info(device))


def _from_files(checkpoint: Checkpoint, dtype: torch.dtype) -> GPTJForCausalLM:
    """Load on the host. Not straight onto the GPU: for that Transformers wants one more package."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = GPTJConfig.from_pretrained(checkpoint.directory, local_files_only=True)
    loaded: Any = GPTJForCausalLM.from_pretrained(
        checkpoint.directory,
        config=config,
        dtype=dtype,
        attn_implementation="eager",  # Transformers has no SDPA for GPT-J
        use_safetensors=checkpoint.files.format == SAFETENSORS,
        weights_only=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # a missing weight would be filled with random numbers and served
    model: GPTJForCausalLM
    model, report = loaded
    broken = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind]]
    if broken:
        raise StartupError(f"{checkpoint.directory}: changed since it was checked: {some(sorted(broken))}")
    return model


def _log(model: GPTJForCausalLM, device: torch.device, seconds: float) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    fields = {
        "event": "model_loaded",
        "seconds": round(seconds, 3),
        "device": str(device),
        "device_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "host_peak_bytes": _host_peak_bytes(),
    }
    logger.info("the model is loaded", extra={"fields": fields})


def _host_peak_bytes() -> int:
    """The process's largest resident size so far, mapped files included."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
