"""Loads one model onto the GPU once, and prints as JSON what it took.

Usage: python load_once.py fused|transformers|transformers_device_map|check DIR
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gptj_serve.engine.fused.weights.load import load_weights
from gptj_serve.engine.fused.weights.pack import PlainSlot, slots
from gptj_serve.models.model_dir import Checkpoint, find_checkpoint

DEVICE = torch.device("cuda", 0)


class Kept(logging.Handler):
    """Keeps the fields of the last record."""

    fields: dict[str, Any] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.fields = getattr(record, "fields", None)


def measure(kind: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Load once, imports and the start of CUDA not counted; returns seconds and what the log says."""
    kept = Kept()
    logging.getLogger("gptj_serve").addHandler(kept)
    logging.getLogger("gptj_serve").setLevel(logging.INFO)
    if kind != "fused":
        from transformers import GPTJForCausalLM
    torch.zeros(1, device=DEVICE).cpu()
    started_s = time.monotonic()
    loaded: Any
    if kind == "fused":
        loaded = load_weights(checkpoint, DEVICE, torch.float16)
    elif kind == "transformers":
        loaded = GPTJForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float16).to(DEVICE)
    else:
        loaded = GPTJForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float16, device_map=DEVICE)
    torch.cuda.synchronize()
    seconds = time.monotonic() - started_s
    del loaded
    return {"seconds": round(seconds, 3), "log": kept.fields}


def check(checkpoint: Checkpoint) -> dict[str, Any]:
    """Compare every tensor on the GPU with what safetensors' own reader reads."""
    from safetensors import safe_open

    placed = slots(load_weights(checkpoint, DEVICE, torch.float16))
    num_tensors = 0
    for path in checkpoint.files.paths:
        with safe_open(path, framework="pt") as file:
            for name in set(file.keys()) & placed.keys():
                slot = placed[name]
                assert isinstance(slot, PlainSlot)
                expected = file.get_tensor(name).to(DEVICE).half().view(slot.target_RC.shape)
                assert torch.equal(slot.target_RC, expected), name
                num_tensors += 1
    return {"num_tensors": num_tensors}


if __name__ == "__main__":
    asked, directory = sys.argv[1:]
    found = find_checkpoint(Path(directory))
    print(json.dumps(check(found) if asked == "check" else measure(asked, found)))
