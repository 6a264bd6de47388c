"""Loads a checkpoint into the packed weights of the `fused` engine, straight from its files.

Nothing here may import Transformers: that alone would take longer than the loading.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from gptj_serve.engine.fused.weights.pack import PackedWeights, empty_weights, slots
from gptj_serve.engine.fused.weights.upload import CHUNK_BYTES, NUM_READERS, Uploaded, upload
from gptj_serve.engine.memory import host_peak_bytes, room_for_weights
from gptj_serve.errors import StartupError
from gptj_serve.models.model_dir import CONFIG, TIED_HEAD, Checkpoint
from gptj_serve.models.sources import Source, open_sources

logger = logging.getLogger(__name__)


def load_weights(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    num_readers: int = NUM_READERS,
) -> PackedWeights:
    """Load all weights.

    Args:
        checkpoint: What `gptj_serve.models.model_dir.find_checkpoint` found.
        device: Where the weights go: a CUDA device or the CPU.
        dtype: Their type there, whatever that of the files: float16 on a GPU, float32 on a CPU as a rule.
        chunk_bytes: What is read and copied at once.
        num_readers: Threads that read.

    Returns:
        The weights. Nothing of the files is needed any more, all copies are done.

    Raises:
        StartupError: The GPU or the container has too little memory, or the files changed since the check.
    """
    started_s = time.monotonic()
    with open_sources(checkpoint) as sources:
        is_tied = _is_tied(checkpoint, sources)
        sources_s = time.monotonic()
        needed_bytes = _needed_bytes(checkpoint, dtype, is_tied, chunk_bytes * num_readers)
        with room_for_weights(needed_bytes, device):
            weights = empty_weights(checkpoint, device, dtype, is_tied=is_tied)
            allocated_s = time.monotonic()
            uploaded = upload(
                sources, slots(weights), device, chunk_bytes=chunk_bytes, num_readers=num_readers
            )
    if checkpoint.tie_word_embeddings and torch.equal(weights.embedding_VD, weights.head_weight_VD):
        weights = replace(weights, head_weight_VD=weights.embedding_VD)
    _give_buffers_back(device)
    seconds = {
        "headers": sources_s - started_s,
        "allocate": allocated_s - sources_s,
        "upload": time.monotonic() - allocated_s,
    }
    _log(weights, device, seconds, uploaded)
    return weights


def _is_tied(checkpoint: Checkpoint, sources: Mapping[str, Source]) -> bool:
    """Transformers ties a head that has weights of its own only if these equal the embedding's."""
    if not checkpoint.tie_word_embeddings or TIED_HEAD not in sources:
        return checkpoint.tie_word_embeddings
    expected, found = (checkpoint.vocab_size, checkpoint.n_embd), sources[TIED_HEAD].shape
    if found != expected:
        raise StartupError(
            f"{checkpoint.directory}: the weights do not fit {CONFIG}: wrong: {TIED_HEAD} is {list(found)}, "
            f"expected {list(expected)}"
        )
    return False


def _needed_bytes(checkpoint: Checkpoint, dtype: torch.dtype, is_tied: bool, buffers_bytes: int) -> int:
    """What loading takes on the device. Buffers are never larger than what goes through them."""
    has_second_head = checkpoint.tie_word_embeddings and not is_tied
    num_weights = checkpoint.num_weights + has_second_head * checkpoint.vocab_size * checkpoint.n_embd
    return num_weights * dtype.itemsize + min(buffers_bytes, num_weights * dtype.itemsize)


def _give_buffers_back(device: torch.device) -> None:
    """PyTorch would keep the freed buffers for itself: on the GPU they are the cache's room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        # a PyTorch without this keeps the pinned ones, 256 MB, for copies to come
        if hasattr(torch.accelerator, "empty_host_cache"):
            torch.accelerator.empty_host_cache()


def _log(
    weights: PackedWeights, device: torch.device, phases: Mapping[str, float], uploaded: Uploaded
) -> None:
    fields = {
        "event": "model_loaded",
        "seconds": round(sum(phases.values()), 3),
        **{f"{phase}_seconds": round(seconds, 3) for phase, seconds in phases.items()},
        # reading, copying and converting overlap: what a reader spent on each, on average
        "reader_read_seconds": round(uploaded.read_s, 3),
        "reader_put_seconds": round(uploaded.put_s, 3),
        "file_bytes": uploaded.num_bytes,
        "gb_per_second": float(f"{uploaded.num_bytes / phases['upload'] / 1e9:.3g}"),
        "device": str(device),
        "device_bytes": weights.num_bytes,
        "host_peak_bytes": host_peak_bytes(),
    }
    logger.info("the model is loaded", extra={"fields": fields})
