"""Loads a checkpoint into the packed weights of the `fused` engine, straight from its files.

Nothing here may import Transformers: that alone would take longer than the loading.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from gptj_serve.engine.fused.weights.formats.plain import PlainMatrix
from gptj_serve.engine.fused.weights.pack import PackedWeights, empty_weights, slots
from gptj_serve.engine.fused.weights.upload import CHUNK_BYTES, NUM_READERS, Uploaded, upload
from gptj_serve.engine.memory import room_for_weights, weights_need
from gptj_serve.engine.start_log import log_loaded
from gptj_serve.models.architecture import TIED_HEAD
from gptj_serve.models.model_dir import Checkpoint
from gptj_serve.models.sources import open_sources

logger = logging.getLogger(__name__)


def load_weights(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    num_readers: int = NUM_READERS,
    beside: Mapping[str, int] | None = None,
) -> PackedWeights:
    """Load all weights.

    Args:
        checkpoint: What `gptj_serve.models.model_dir.find_checkpoint` found.
        device: Where the weights go: a CUDA device or the CPU.
        dtype: Their type there, whatever that of the files: float16 on a GPU, float32 on a CPU as a rule.
        chunk_bytes: What is read and copied at once.
        num_readers: Threads that read.
        beside: What the caller will take on the same device, in bytes, by what it is for.

    Returns:
        The weights. Nothing of the files is needed any more, all copies are done.

    Raises:
        StartupError: The GPU or the container has too little memory, or the files changed since the check.
    """
    started_s = time.monotonic()
    needs = {**_needs(checkpoint, dtype, chunk_bytes * num_readers), **(beside or {})}
    unmapped = {"files": checkpoint.unmapped_bytes} if checkpoint.unmapped_bytes else {}
    with room_for_weights(needs, device, unmapped), open_sources(checkpoint) as sources:
        # Transformers ties a head that has weights of its own only if these equal the embedding's
        is_tied = checkpoint.architecture.tied_head and TIED_HEAD not in sources
        sources_s = time.monotonic()
        weights = empty_weights(checkpoint.architecture, device, dtype, is_tied=is_tied)
        allocated_s = time.monotonic()
        places = slots(weights, checkpoint.architecture)
        uploaded = upload(sources, places, device, chunk_bytes=chunk_bytes, num_readers=num_readers)
    if checkpoint.architecture.tied_head and torch.equal(weights.embedding_VD, weights.head.tensors[0]):
        weights = replace(weights, head=PlainMatrix(weights.embedding_VD))
    _give_buffers_back(device)
    seconds = {
        "headers": sources_s - started_s,
        "allocate": allocated_s - sources_s,
        "upload": time.monotonic() - allocated_s,
    }
    rates = _upload_fields(uploaded, seconds["upload"])
    log_loaded(logger, seconds, str(device), weights.num_bytes, **rates)
    return weights


def _needs(checkpoint: Checkpoint, dtype: torch.dtype, buffers_bytes: int) -> dict[str, int]:
    """What loading takes on the device. Buffers are never larger than what goes through them."""
    weights = weights_need(checkpoint.num_weights, dtype)
    return {**weights, "buffers": min(buffers_bytes, *weights.values())}


def _give_buffers_back(device: torch.device) -> None:
    """PyTorch would keep the freed buffers for itself: on the GPU they are the cache's room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # a PyTorch without this keeps the pinned ones, 256 MB, for copies to come
        if hasattr(torch.accelerator, "empty_host_cache"):
            torch.accelerator.empty_host_cache()


def _upload_fields(uploaded: Uploaded, seconds: float) -> dict[str, float]:
    return {
        # reading, copying and converting overlap: what a reader spent on each, on average
        "reader_read_seconds": round(uploaded.read_s, 3),
        "reader_put_seconds": round(uploaded.put_s, 3),
        "file_bytes": uploaded.num_bytes,
        "gb_per_second": float(f"{uploaded.num_bytes / seconds / 1e9:.3g}"),
    }
