"""Loads a checkpoint's weights through Transformers, once, onto one device.

Transformers builds the model on the meta device and maps the files into memory, so weights of the wanted type
are never copied on the host: moving the model to a GPU reads them from the files, and on a CPU the mapped
pages are the weights. Weights of another type are converted one by one, which makes one copy.
"""

import logging
import time
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from gptj_serve.engine.memory import room_for_weights, weights_need
from gptj_serve.engine.start_log import log_loaded
from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import some
from gptj_serve.models.checkpoint_files import SAFETENSORS
from gptj_serve.models.config import CONFIG
from gptj_serve.models.model_dir import Checkpoint

logger = logging.getLogger(__name__)


def load_model(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> GPTJForCausalLM:
    """Load the model, ready for inference.

    Args:
        checkpoint: What `gptj_serve.models.model_dir.find_checkpoint` found.
        device: The device that the weights go to.
        dtype: The weights' type there, usually float16 on a GPU and float32 on a CPU.

    Returns:
        The model in evaluation mode, its parameters frozen.

    Raises:
        StartupError: The GPU or the container has too little memory, or the files changed since the check.
    """
    started_s = time.monotonic()
    try:
        with room_for_weights(_needs(checkpoint, dtype), device, _host_needs(checkpoint, dtype)):
            model = _from_files(checkpoint, dtype)
            read_s = time.monotonic() - started_s
            model.to(device)  # type: ignore[arg-type]  # its decorator hides that this is a method
    except (OSError, UnpicklingError) as error:
        raise StartupError(f"{checkpoint.directory}: changed since it was checked; not loaded") from error
    model.requires_grad_(False)
    # files are only mapped unless weights are converted, so uploading reads them
    seconds = {"read": read_s, "upload": time.monotonic() - started_s - read_s}
    num_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    log_loaded(logger, seconds, str(device), num_bytes)
    return model


def needed_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """How many bytes the loaded weights take, with the float32 rotary tables that every block keeps."""
    return sum(_needs(checkpoint, dtype).values())


def _needs(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, int]:
    of = checkpoint.architecture
    tables = of.num_layers * of.max_positions * of.positions.dim * 4
    return {**weights_need(checkpoint.num_weights, dtype), "rotary tables": tables}


def _host_needs(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, int]:
    """What loading takes of the host's memory: files that cannot be mapped, which are read as a whole."""
    is_converted = checkpoint.unmapped_bytes < checkpoint.num_weights * dtype.itemsize
    return {"files": checkpoint.unmapped_bytes} if is_converted and checkpoint.unmapped_bytes else {}


def load_config(checkpoint: Checkpoint) -> GPTJConfig:
    """The model's configuration as Transformers reads it.

    Raises:
        StartupError: A field is of a type or value that Transformers does not take.
    """
    path = checkpoint.directory / CONFIG
    try:
        config = GPTJConfig.from_pretrained(checkpoint.directory, local_files_only=True)
    except OSError:
        raise
    except Exception as error:  # its checks raise many kinds of errors
        raise StartupError(
            f"{path}: Transformers does not take it: {' '.join(str(error).split())}"
        ) from error
    if config.activation_function not in ACT2FN:
        known = ", ".join(sorted(ACT2FN))
        raise StartupError(
            f"{path}: activation_function={config.activation_function!r}: must be one of {known}"
        )
    return config


def _from_files(checkpoint: Checkpoint, dtype: torch.dtype) -> GPTJForCausalLM:
    """Load on the host, as loading straight onto the GPU would need one more package for Transformers."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the check has said it all
    config = load_config(checkpoint)
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
